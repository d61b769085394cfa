// The comparison: one request a picture, so that one that is broken leaves the others alone.

import { failure, isTooLarge, onPictures, say, send, tooLarge } from "./common.js";

const byId = (id) => document.getElementById(id);
const texts = byId("texts");
const template = byId("template");
const score = byId("score");
const chosen = byId("chosen");
const matrix = byId("matrix");

const AT_ONCE = 2; // requests under way: each holds a picture's bytes several times over

const files = new Map(); // list item -> file
let turn = 0; // number of the comparison that is shown

function choose(file) {
  const item = document.createElement("li");
  item.className = "chip";
  const image = preview(file);
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = "×";
  remove.setAttribute("aria-label", `Remove ${file.name}`);
  remove.addEventListener("click", () => {
    files.delete(item);
    item.remove();
    URL.revokeObjectURL(image.src);
  });
  item.append(image, remove);
  files.set(item, file);
  chosen.append(item);
}

function preview(file) {
  return Object.assign(document.createElement("img"), { src: URL.createObjectURL(file), alt: file.name, title: file.name });
}

function cell(row, tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  row.append(made);
  return made;
}

// The darker a cell, the more similar; from the lowest to the highest of the matrix.
function colour() {
  const cells = [...matrix.querySelectorAll("td[data-cosine]")];
  const values = cells.map((one) => Number(one.dataset.cosine));
  const low = Math.min(...values);
  const high = Math.max(...values);
  cells.forEach((one, i) => {
    const share = high > low ? (values[i] - low) / (high - low) : 0.5;
    one.style.setProperty("--share", share.toFixed(3));
  });
}

async function compare() {
  const mine = ++turn;
  say("");
  const lines = texts.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!files.size || !lines.length) return say("At least one picture and one text are needed.");
  const head = document.createElement("tr");
  cell(head, "td", "");
  for (const line of lines) Object.assign(cell(head, "th", line), { scope: "col", dir: "auto" });
  const body = document.createElement("tbody");
  const waiting = [...files.values()].map((file) => {
    const row = body.insertRow();
    const name = Object.assign(cell(row, "th", ""), { scope: "row" });
    const label = Object.assign(document.createElement("span"), { textContent: file.name });
    label.setAttribute("aria-hidden", "true"); // the picture says it
    name.append(preview(file), label);
    Object.assign(cell(row, "td", "…"), { colSpan: lines.length });
    return { file, row };
  });
  const start = document.createElement("thead");
  start.append(head);
  matrix.replaceChildren(start, body);
  matrix.parentElement.hidden = false;
  byId("status").textContent = `Comparing ${waiting.length} × ${lines.length} …`;
  document.body.setAttribute("aria-busy", "true");
  const address = new URLSearchParams(lines.map((line) => ["text", line]));
  address.set("template", template.value);
  address.set("score", score.value);
  let done = 0;
  let used = "";
  const work = async () => {
    for (let next; mine === turn && (next = waiting.shift()); ) {
      const { file, row } = next;
      try {
        if (isTooLarge(file)) throw tooLarge(file);
        const answer = await send(`/comparison?${address}`, file);
        if (mine !== turn) return;
        used = answer.score;
        row.deleteCell(1);
        answer.cosine_similarity.forEach((cosine, i) => {
          const made = cell(row, "td", "");
          made.dataset.cosine = cosine;
          made.append(
            Object.assign(document.createElement("b"), { textContent: cosine.toFixed(3) }),
            Object.assign(document.createElement("small"), { textContent: `${(100 * answer.probabilities[i]).toFixed(1)} %` }),
          );
        });
        done += 1;
        colour();
      } catch (error) {
        const reason = typeof error === "string" ? { message: error, of_picture: true } : await failure(error);
        if (mine !== turn) return;
        row.cells[1].textContent = reason.message;
        row.cells[1].className = "problem";
        if (!reason.of_picture) {
          waiting.length = 0; // it would be the same for every picture
          say(reason.message);
        }
      }
    }
  };
  const count = waiting.length;
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  if (mine !== turn) return;
  document.body.removeAttribute("aria-busy");
  byId("status").textContent =
    `${done} of ${count} picture${count === 1 ? "" : "s"} compared with ${lines.length} text${lines.length === 1 ? "" : "s"}: ` +
    `cosine similarity, and the probability of the text ${used === "sigmoid" ? "by itself" : "among these"}.`;
}

byId("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  compare();
});
byId("examples").addEventListener("click", (event) => {
  const example = event.target.closest("button");
  if (!example) return;
  texts.value = example.dataset.labels;
  template.value = example.dataset.template;
  if (files.size) compare();
});
onPictures((dropped) => {
  say("");
  dropped.forEach(choose);
});
