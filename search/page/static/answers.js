// Answers: the last one's place is taken by the next, they go on as one scrolls, and arrows lead from picture to picture.

import { button, failure } from "./common.js";
import { asked, current, openAsAddressSays, pictures } from "./viewer.js";

const byId = (id) => document.getElementById(id);
const viewer = byId("viewer");
const READ_AHEAD = "1500px"; // what follows is asked for this far above the end of the page

let running = null; // the request of what was asked last
let loading = null; // that of what follows
let from = ""; // where answers come from
let lay = () => {}; // is called with what was added

// Says where answers come from, and what is to be done with each.
export function answersFrom(path, added) {
  from = path;
  lay = added;
  prepare(byId("results"));
}

function prepare(results) {
  lay(results);
  const sentinel = results.querySelector("#more");
  if (sentinel) ahead.observe(sentinel);
}

// Puts the answer to a query in the place of the last one.
export async function answer(state) {
  viewer.close();
  running?.abort();
  const mine = (running = new AbortController());
  document.body.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`${from}?${asked(state)}`, { signal: mine.signal });
    const results = parse(await response.text());
    if (!results) throw response;
    byId("results").replaceWith(results);
    scrollTo(0, 0);
    prepare(results);
  } catch (error) {
    if (mine.signal.aborted) return;
    problem((await failure(error)).message);
  } finally {
    if (running === mine) document.body.removeAttribute("aria-busy");
  }
  if (running === mine) openAsAddressSays();
}

function parse(html) {
  return new DOMParser().parseFromString(html, "text/html").getElementById("results");
}

// The same in place of results as the server's own problems.
function problem(message) {
  const status = Object.assign(document.createElement("p"), { id: "status", className: "problem", textContent: message });
  status.setAttribute("role", "alert");
  const again = button("Try again", "Try again");
  again.id = "again";
  byId("results").replaceChildren(status, again);
}

const ahead = new IntersectionObserver(
  (entries) => {
    if (entries.some((entry) => entry.isIntersecting)) more();
  },
  { rootMargin: READ_AHEAD },
);

// Appends what follows in the answer; one call at a time.
export function more() {
  loading ??= loadMore().finally(() => (loading = null));
  return loading;
}

async function loadMore() {
  const results = byId("results");
  const sentinel = results.querySelector("#more");
  if (!sentinel) return;
  const state = new URLSearchParams(asked(current()));
  state.set("offset", sentinel.dataset.offset);
  let next;
  try {
    const response = await fetch(`${from}?${state}`);
    if (!response.ok) throw response;
    next = parse(await response.text());
  } catch {
    return; // asked for again when one scrolls on
  }
  if (!results.isConnected) return; // something else was asked meanwhile
  ahead.unobserve(sentinel);
  sentinel.remove();
  results.querySelector(".items").append(...next.querySelectorAll(".items > li"));
  const following = next.querySelector("#more, #end");
  if (following) results.append(following);
  prepare(results);
}

// ---- from picture to picture

// The picture that an arrow key leads to from another.
function neighbour(picture, key) {
  const all = pictures();
  const position = all.indexOf(picture);
  const isRightToLeft = getComputedStyle(document.body).direction === "rtl";
  if (key === "ArrowLeft" || key === "ArrowRight") return all[position + ((key === "ArrowRight") !== isRightToLeft ? 1 : -1)];
  const box = picture.getBoundingClientRect();
  const middle = (of) => of.left + of.width / 2;
  let best = null;
  let distance = Infinity;
  let row = null; // the top of the first row in the direction of the key
  const following = key === "ArrowDown" ? all.slice(position + 1) : all.slice(0, position).reverse();
  for (const candidate of following) {
    const other = candidate.getBoundingClientRect();
    if (Math.abs(other.top - box.top) < 2) continue;
    row ??= other.top;
    if (Math.abs(other.top - row) > 2) break;
    const apart = Math.abs(middle(other) - middle(box));
    if (apart < distance) [best, distance] = [candidate, apart];
  }
  return best;
}

// Arrows lead from the field `above` to the first picture, from picture to picture, and back; Esc leads back at once, and
// from everywhere / does.
export function onArrows(above) {
  document.addEventListener("keydown", (event) => {
    if (viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const picture = event.target.closest("a[data-path]");
    if (event.key === "/" && !event.target.matches("input, textarea")) {
      event.preventDefault();
      above.focus();
      above.select?.();
    } else if (event.key === "ArrowDown" && event.target === above && above.matches("input")) {
      event.preventDefault();
      pictures()[0]?.focus();
    } else if (picture && event.key.startsWith("Arrow")) {
      event.preventDefault();
      (neighbour(picture, event.key) ?? (event.key === "ArrowUp" ? above : null))?.focus();
    } else if (picture && event.key === "Escape") {
      above.focus();
    }
  });
}
