// The search page. Its one state is the address: form, chips, results and the open picture all follow it.

import { failure, isTooLarge, onPictures, say, send, tooLarge } from "./common.js";

const byId = (id) => document.getElementById(id);
const form = byId("ask");
const query = byId("query");
const chips = byId("chips");
const filters = byId("filters");
const viewer = byId("viewer");
const FILTERS = ["part", "since", "until", "place", "camera", "least"];
const hasKeyboard = matchMedia("(hover: hover)").matches; // a computer's, not one on the screen
const READ_AHEAD = "1500px"; // the next pictures are asked for this far above the end of the page


// ---- state

const current = () => new URLSearchParams(location.search);

// The query alone: what is shown large is no part of it.
function asked(state) {
  const copy = new URLSearchParams(state);
  copy.delete("open");
  return copy.toString();
}

function address(state) {
  const text = state.toString();
  return text ? `/?${text}` : "/";
}

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
  markFilters();
}

function markFilters() {
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

function button(text, name) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.title = name;
  made.setAttribute("aria-label", name);
  return made;
}

// ---- asking

let running = null; // the request of what was asked last
let answered = asked(current()); // the query that the results are of
function ask(state) {
  if (state.toString() !== location.search.slice(1)) history.pushState(null, "", address(state));
  answer(state);
}

async function answer(state) {
  answered = asked(state);
  show(state);
  say("");
  viewer.close();
  running?.abort();
  const mine = (running = new AbortController());
  document.body.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`/results?${asked(state)}`, { signal: mine.signal });
    const results = parse(await response.text());
    if (!results) throw response;
    byId("results").replaceWith(results);
    scrollTo(0, 0);
    lay(results);
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

// ---- the grid

const ahead = new IntersectionObserver(
  (entries) => {
    if (entries.some((entry) => entry.isIntersecting)) more();
  },
  { rootMargin: READ_AHEAD },
);

// Gives every picture its share of a row.
function lay(results) {
  for (const tile of results.querySelectorAll(".tiles li")) {
    tile.style.setProperty("--ratio", Number(tile.dataset.width) / Number(tile.dataset.height));
  }
  byId("examples").hidden = results.dataset.asks === "yes";
  const sentinel = results.querySelector("#more");
  if (sentinel) ahead.observe(sentinel);
}

let loading = null;

// Appends the next pictures of the answer; one call at a time.
function more() {
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
    const response = await fetch(`/results?${state}`);
    if (!response.ok) throw response;
    next = parse(await response.text());
  } catch {
    return; // asked for again when one scrolls on
  }
  if (!results.isConnected) return; // something else was asked meanwhile
  ahead.unobserve(sentinel);
  sentinel.remove();
  results.querySelector(".tiles").append(...next.querySelectorAll(".tiles > li"));
  const following = next.querySelector("#more, #end");
  if (following) results.append(following);
  lay(results);
}

const tiles = () => [...document.querySelectorAll(".tiles a")];

// The tile that an arrow key leads to from another.
function neighbour(tile, key) {
  const all = tiles();
  const position = all.indexOf(tile);
  if (key === "ArrowLeft") return all[position - 1];
  if (key === "ArrowRight") return all[position + 1];
  const from = tile.getBoundingClientRect();
  const middle = (box) => box.left + box.width / 2;
  let best = null;
  let distance = Infinity;
  let row = null; // the top of the first row in the direction of the key
  const following = key === "ArrowDown" ? all.slice(position + 1) : all.slice(0, position).reverse();
  for (const candidate of following) {
    const box = candidate.getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 2) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) > 2) break;
    const apart = Math.abs(middle(box) - middle(from));
    if (apart < distance) [best, distance] = [candidate, apart];
  }
  return best;
}

// ---- one picture, large

let shown = null; // the tile whose picture is shown

function open(tile) {
  const state = current();
  const method = state.has("open") ? "replaceState" : "pushState";
  state.set("open", tile.dataset.path);
  history[method]({ opened: method === "pushState" || history.state?.opened }, "", address(state));
  display(tile);
}

function openAsAddressSays() {
  const path = current().get("open");
  const tile = path === null ? null : tiles().find((one) => one.dataset.path === path);
  if (tile) display(tile);
  else viewer.close();
}

async function display(tile) {
  shown = tile;
  const small = tile.querySelector("img");
  const large = byId("large");
  byId("unshown").hidden = true;
  large.hidden = false;
  large.alt = small.alt;
  large.src = small.src;
  large.className = "preview";
  byId("name").textContent = small.alt;
  byId("score").textContent = `${tile.dataset.closeness}, cosine ${tile.dataset.score}`;
  byId("standard").value = tile.dataset.standard ?? 0;
  byId("standard").title = `${tile.dataset.standard} standard deviations more similar than pictures at random`;
  byId("similarity").hidden = tile.dataset.score === undefined;
  const copies = JSON.parse(tile.dataset.copies);
  byId("equal").hidden = !copies.length;
  byId("copies").replaceChildren(...copies.map((path) => Object.assign(document.createElement("li"), { textContent: path, dir: "auto" })));
  for (const id of ["folder", "changed", "size"]) byId(id).textContent = "…";
  for (const id of ["taken", "camera", "place"]) byId(`has-${id}`).hidden = true;
  for (const action of viewer.querySelectorAll(".actions button")) action.disabled = true;
  byId("copy").querySelector("span").textContent = "Copy path";
  byId("previous").disabled = tiles()[0] === tile;
  byId("next").disabled = tiles().at(-1) === tile && !byId("more");
  if (!viewer.open) viewer.showModal();
  const original = Object.assign(new Image(), { src: tile.href });
  try {
    const response = await fetch(`/details?path=${encodeURIComponent(tile.dataset.path)}`);
    if (!response.ok) throw response;
    const details = await response.json();
    if (shown !== tile) return;
    viewer.dataset.picture = details.picture;
    viewer.dataset.folder = details.folder;
    viewer.dataset.path = details.path;
    byId("folder").textContent = details.folder;
    byId("changed").textContent = new Date(details.changed).toLocaleString();
    const told = {
      taken: details.taken && new Date(details.taken).toLocaleString(), // the camera's clock: no zone
      camera: details.camera,
      place: [details.place, details.position].filter(Boolean).join(" · "),
    };
    for (const [id, text] of Object.entries(told)) {
      byId(id).textContent = text ?? "";
      byId(`has-${id}`).hidden = !text;
    }
    const size = details.bytes < 1e6 ? `${Math.ceil(details.bytes / 1000)} kB` : `${(details.bytes / 1e6).toFixed(1)} MB`;
    byId("size").textContent = size;
    for (const action of viewer.querySelectorAll(".actions button")) action.disabled = false;
    await original.decode();
    if (shown !== tile) return;
    large.src = original.src;
    large.className = "";
    byId("size").textContent = `${original.naturalWidth} × ${original.naturalHeight} pixels, ${size}`;
  } catch (error) {
    if (shown !== tile) return;
    large.hidden = true;
    byId("unshown").hidden = false;
    const isAnswer = error instanceof Response;
    const answer = isAnswer ? error : await fetch(tile.href).catch((reason) => reason);
    byId("unshown").textContent =
      answer instanceof Response && answer.ok ? "This browser cannot show the picture." : (await failure(answer)).message;
    for (const id of isAnswer ? ["folder", "changed", "size"] : []) byId(id).textContent = "–";
  }
}

async function step(forward) {
  let all = tiles();
  let position = all.indexOf(shown) + (forward ? 1 : -1);
  if (position >= all.length) {
    await more();
    all = tiles();
  }
  if (all[position]) open(all[position]);
}

// Closing goes back in history if opening went forward, so that Back never opens it again.
function leave() {
  if (history.state?.opened) return history.back();
  const state = current();
  state.delete("open");
  history.replaceState(null, "", address(state));
  viewer.close();
}

viewer.addEventListener("cancel", (event) => {
  event.preventDefault();
  leave();
});
viewer.addEventListener("close", () => {
  shown?.focus();
  shown = null;
});
byId("close").addEventListener("click", leave);
byId("previous").addEventListener("click", () => step(false));
byId("next").addEventListener("click", () => step(true));
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowRight");
});
byId("more-like").addEventListener("click", () => ask(new URLSearchParams({ like: viewer.dataset.picture })));
byId("less-like").addEventListener("click", () => {
  const state = new URLSearchParams(asked(current()));
  state.append("unlike", viewer.dataset.picture);
  ask(state);
});
byId("in-folder").addEventListener("click", () => ask(new URLSearchParams({ part: viewer.dataset.folder })));
byId("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(viewer.dataset.path);
  byId("copy").querySelector("span").textContent = "Copied";
});

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
  if (event.target.closest("#again")) return answer(current());
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // in a tab of its own
  const tile = event.target.closest(".tiles a");
  const example = event.target.closest("#examples a");
  if (!tile && !example) return;
  event.preventDefault();
  if (tile) open(tile);
  else ask(new URLSearchParams(new URL(example.href).search));
});
document.addEventListener("keydown", (event) => {
  if (viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, textarea");
  const tile = event.target.closest(".tiles a");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "ArrowDown" && event.target === query) {
    event.preventDefault();
    tiles()[0]?.focus();
  } else if (tile && event.key.startsWith("Arrow")) {
    event.preventDefault();
    (neighbour(tile, event.key) ?? (event.key === "ArrowUp" ? query : null))?.focus();
  } else if (tile && event.key === "Escape") {
    query.focus();
  }
});

addEventListener("popstate", () => {
  if (asked(current()) === answered) openAsAddressSays();
  else answer(current());
});

show(current());
if (FILTERS.some((name) => form.elements[name].value)) byId("show-filters").click();
lay(byId("results"));
openAsAddressSays();
if (hasKeyboard && !current().has("open")) query.focus();
