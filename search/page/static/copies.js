// The page of copies. As on the search page, the address is the state.

import { answer, answersFrom, more, onArrows } from "./answers.js";
import { address, asked, current, openAsAddressSays, prepareViewer } from "./viewer.js";

const which = document.getElementById("which");
let answered = ""; // what the groups are of

function answerTo(state) {
  answered = asked(state);
  for (const field of which.elements) field.value = state.get(field.name) ?? field.dataset.default;
  answer(state);
}

which.addEventListener("change", () => {
  const state = new URLSearchParams();
  for (const field of which.elements) if (field.value !== field.dataset.default) state.set(field.name, field.value);
  history.pushState(null, "", address(state));
  answerTo(state);
});
document.addEventListener("click", async (event) => {
  if (event.target.closest("#again")) return answerTo(current());
  const copy = event.target.closest("button[data-copied]");
  if (!copy) return;
  await navigator.clipboard.writeText(copy.dataset.copied);
  for (const other of document.querySelectorAll(".done")) other.classList.remove("done");
  copy.classList.add("done");
  document.getElementById("told").textContent = `Copied ${copy.dataset.copied}`;
});
prepareViewer({ asks: (state) => location.assign(`/?${state}`), follows: more });
onArrows(which.elements[0]);
addEventListener("popstate", () => {
  if (asked(current()) === answered) openAsAddressSays();
  else answerTo(current());
});
answersFrom("/copies/groups", () => {});
answerTo(current());
