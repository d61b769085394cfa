// One picture, large. A picture of a page is a link to it with `data-path`; the one that is large is `open` in the address.

import { failure } from "./common.js";

const byId = (id) => document.getElementById(id);
const viewer = byId("viewer");

export const current = () => new URLSearchParams(location.search);

// What is asked alone: what is shown large is no part of it.
export function asked(state) {
  const copy = new URLSearchParams(state);
  copy.delete("open");
  return copy.toString();
}

export function address(state) {
  const text = state.toString();
  return text ? `${location.pathname}?${text}` : location.pathname;
}

export const pictures = () => [...document.querySelectorAll("a[data-path]")];

let shown = null; // the link whose picture is shown
let original = new Image(); // what is on its way
let more = async () => {};

export function open(picture) {
  const state = current();
  const method = state.has("open") ? "replaceState" : "pushState";
  state.set("open", picture.dataset.path);
  history[method]({ opened: method === "pushState" || history.state?.opened }, "", address(state));
  display(picture);
}

export function openAsAddressSays() {
  const path = current().get("open");
  const picture = path === null ? null : pictures().find((one) => one.dataset.path === path);
  if (picture) display(picture);
  else viewer.close();
}

async function display(picture) {
  shown = picture;
  const small = picture.querySelector("img");
  const large = byId("large");
  original.removeAttribute("src"); // whoever leafs through waits for none but the last
  original = Object.assign(new Image(), { src: picture.href });
  const mine = original;
  byId("unshown").hidden = true;
  large.hidden = false;
  large.alt = small.alt;
  large.src = small.src;
  large.className = "preview";
  byId("name").textContent = small.alt;
  byId("score").textContent = `${picture.dataset.closeness}, cosine ${picture.dataset.score}`;
  byId("standard").value = picture.dataset.standard ?? 0;
  byId("standard").title = `${picture.dataset.standard} standard deviations more similar than pictures at random`;
  byId("similarity").hidden = picture.dataset.score === undefined;
  const copies = JSON.parse(picture.dataset.copies);
  byId("equal").hidden = !copies.length;
  byId("copies").replaceChildren(...copies.map((path) => Object.assign(document.createElement("li"), { textContent: path, dir: "auto" })));
  for (const id of ["folder", "changed", "size"]) byId(id).textContent = "…";
  for (const id of ["taken", "camera", "place"]) byId(`has-${id}`).hidden = true;
  for (const action of viewer.querySelectorAll(".actions button")) action.disabled = true;
  byId("copy").querySelector("span").textContent = "Copy path";
  byId("previous").disabled = pictures()[0] === picture;
  byId("next").disabled = pictures().at(-1) === picture && !byId("more");
  if (!viewer.open) viewer.showModal();
  try {
    const response = await fetch(`/details?path=${encodeURIComponent(picture.dataset.path)}`);
    if (!response.ok) throw response;
    const details = await response.json();
    if (original !== mine) return;
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
    const size = (width, height) => {
      byId("size").textContent = width ? `${width} × ${height} pixels, ${details.size}` : details.size;
    };
    size(details.width, details.height);
    for (const action of viewer.querySelectorAll(".actions button")) action.disabled = false;
    await mine.decode();
    if (original !== mine) return;
    large.src = mine.src;
    large.className = "";
    // Of a table of an older version only the browser knows.
    if (!details.width) size(mine.naturalWidth, mine.naturalHeight);
  } catch (error) {
    if (original !== mine) return;
    large.hidden = true;
    byId("unshown").hidden = false;
    const isAnswer = error instanceof Response;
    const answer = isAnswer ? error : await fetch(picture.href).catch((reason) => reason);
    byId("unshown").textContent =
      answer instanceof Response && answer.ok ? "This browser cannot show the picture." : (await failure(answer)).message;
    for (const id of isAnswer ? ["folder", "changed", "size"] : []) byId(id).textContent = "–";
  }
}

async function step(forward) {
  let all = pictures();
  let position = all.indexOf(shown) + (forward ? 1 : -1);
  if (position >= all.length) {
    await more();
    all = pictures();
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

// Says what its buttons do: `asks` takes what to ask instead, and `follows` brings the pictures that follow.
export function prepareViewer({ asks, follows }) {
  more = follows;
  byId("more-like").addEventListener("click", () => asks(new URLSearchParams({ like: viewer.dataset.picture })));
  byId("in-folder").addEventListener("click", () => asks(new URLSearchParams({ part: viewer.dataset.folder })));
  viewer.addEventListener("cancel", (event) => {
    event.preventDefault();
    leave();
  });
  viewer.addEventListener("close", () => {
    shown?.focus();
    shown = null;
    original = new Image();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    step((event.key === "ArrowRight") === (getComputedStyle(viewer).direction === "ltr"));
  });
  byId("close").addEventListener("click", leave);
  byId("previous").addEventListener("click", () => step(false));
  byId("next").addEventListener("click", () => step(true));
  byId("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(viewer.dataset.path);
    byId("copy").querySelector("span").textContent = "Copied";
  });
  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // in a tab of its own
    const picture = event.target.closest("a[data-path]");
    if (!picture) return;
    event.preventDefault();
    open(picture);
  });
}
