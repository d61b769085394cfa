// The search page. Its one state is the address: form, chips, results and the open picture all follow it.

import { answer, answersFrom, more, onArrows } from "./answers.js";
import { button, failure, isTooLarge, onPictures, say, send, tooLarge } from "./common.js";
import { address, asked, current, openAsAddressSays, prepareViewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);
const form = byId("ask");
const query = byId("query");
const chips = byId("chips");
const filters = byId("filters");
const FILTERS = ["part", "since", "until", "place", "camera", "least"];
const hasKeyboard = matchMedia("(hover: hover)").matches; // a computer's, not one on the screen

// ---- what is asked

// What form and chips ask for.
function filledIn() {
  const state = new URLSearchParams();
  for (const name of ["q", ...FILTERS]) {
    const value = form.elements[name].value.trim();
    if (value) state.set(name, value);
  }
  for (const chip of chips.children) state.append(chip.dataset.sign, chip.dataset.picture);
  return state;
}

// Fills form and chips in from a state.
function show(state) {
  for (const name of ["q", ...FILTERS]) form.elements[name].value = state.get(name) ?? "";
  chips.replaceChildren();
  for (const sign of ["like", "unlike"]) for (const picture of state.getAll(sign)) chips.append(chip(sign, picture));
  byId("show-filters").dataset.active = FILTERS.some((name) => form.elements[name].value) ? "yes" : "no";
}

function chip(sign, picture) {
  const item = document.createElement("li");
  item.className = "chip";
  item.dataset.sign = sign;
  item.dataset.picture = picture;
  const image = document.createElement("img");
  image.src = `/thumbnail/${encodeURIComponent(picture)}`;
  image.alt = sign === "like" ? "wanted: pictures like this" : "unwanted: pictures like this";
  const turn = button(sign === "like" ? "+" : "−", sign === "like" ? "Turn into: not like this" : "Turn into: like this");
  turn.addEventListener("click", () => {
    item.replaceWith(chip(sign === "like" ? "unlike" : "like", picture));
    ask(filledIn());
  });
  const remove = button("×", "Remove the picture from the query");
  remove.addEventListener("click", () => {
    item.remove();
    ask(filledIn());
    query.focus();
  });
  item.append(turn, image, remove);
  return item;
}

let answered = asked(current()); // the query that the results are of

function ask(state) {
  if (state.toString() !== location.search.slice(1)) history.pushState(null, "", address(state));
  answerTo(state);
}

function answerTo(state) {
  answered = asked(state);
  show(state);
  say("");
  answer(state);
}

// Gives every picture its share of a row.
function lay(results) {
  for (const tile of results.querySelectorAll(".tiles li")) {
    tile.style.setProperty("--ratio", Number(tile.dataset.width) / Number(tile.dataset.height));
  }
  byId("examples").hidden = results.dataset.asks === "yes";
}

// ---- pictures as queries

onPictures(async (files) => {
  say("");
  const problems = [];
  document.body.setAttribute("aria-busy", "true");
  for (const file of files) {
    try {
      if (isTooLarge(file)) throw tooLarge(file);
      chips.append(chip("like", (await send("/pictures", file)).picture));
    } catch (error) {
      problems.push(`${file.name}: ${typeof error === "string" ? error : (await failure(error)).message}`);
    }
  }
  document.body.removeAttribute("aria-busy");
  if (problems.length < files.length) ask(filledIn());
  if (problems.length) say(problems.join("\n"));
});

// ---- the rest

prepareViewer({ asks: ask, follows: more });
byId("less-like").addEventListener("click", () => {
  const state = new URLSearchParams(asked(current()));
  state.append("unlike", byId("viewer").dataset.picture);
  ask(state);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!hasKeyboard) query.blur(); // the keyboard on the screen goes, and the pictures are seen
  ask(filledIn());
});
byId("show-filters").addEventListener("click", () => {
  filters.hidden = !filters.hidden;
  byId("show-filters").setAttribute("aria-expanded", String(!filters.hidden));
});
byId("clear-filters").addEventListener("click", () => {
  for (const name of FILTERS) form.elements[name].value = "";
  ask(filledIn());
});
document.addEventListener("click", (event) => {
  if (event.target.closest("#again")) return answerTo(current());
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // in a tab of its own
  const example = event.target.closest("#examples a");
  if (!example) return;
  event.preventDefault();
  ask(new URLSearchParams(new URL(example.href).search));
});
onArrows(query);
addEventListener("popstate", () => {
  if (asked(current()) === answered) openAsAddressSays();
  else answerTo(current());
});

show(current());
if (FILTERS.some((name) => form.elements[name].value)) byId("show-filters").click();
answersFrom("/results", lay);
openAsAddressSays();
if (hasKeyboard && !current().has("open")) query.focus();
