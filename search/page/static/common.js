// What both pages do: notices, and pictures that are dropped, pasted or chosen.

const notice = document.getElementById("notice");

export function say(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

export function button(text, name) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.title = name;
  made.setAttribute("aria-label", name);
  return made;
}

// The page's own server was ended, or what went wrong there, in a sentence.
export async function failure(error) {
  if (!(error instanceof Response)) {
    return { message: "The page's own server does not answer; start it again: make ui", of_picture: false };
  }
  try {
    return await error.json();
  } catch {
    return { message: `The page's own server answers with status ${error.status}.`, of_picture: false };
  }
}

// Sends a picture's file as it is, and gives the JSON of the answer; throws what `failure` explains.
export async function send(address, file) {
  const response = await fetch(address, { method: "POST", body: file });
  if (!response.ok) throw response;
  return response.json();
}

// A file that is too large is not even sent.
export function isTooLarge(file) {
  return file.size > Number(document.body.dataset.maxBytes);
}

export function tooLarge(file) {
  return `${file.size} bytes, allowed are ${document.body.dataset.maxBytes}`;
}

export function onPictures(take) {
  const drop = document.getElementById("drop");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    drop.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    take(files);
  });
  const chooser = document.getElementById("file");
  chooser.addEventListener("change", () => {
    const files = [...chooser.files];
    chooser.value = ""; // the same file may be chosen again
    if (files.length) take(files);
  });
}
