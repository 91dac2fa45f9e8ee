// Asking the server: requests, jobs that can be cancelled, numbers out of base64.

const client = sessionStorage.client ??= Math.random().toString(36).slice(2, 14);

export class Refused extends Error {}

export async function ask(path, body, method = body === undefined ? "GET" : "POST") {
  const headers = { "X-Client": client };
  const raw = body instanceof Blob;
  if (body !== undefined && !raw) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : raw ? body : JSON.stringify(body) });
  const told = await answer.json().catch(() => ({ detail: `The explorer answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Refused(told.detail);
  return told;
}

// Start a job and follow it; `follow(job, cancel)` is told how far it is. Returns null if it was cancelled.
export async function work(path, body, follow) {
  let job = await ask(path, body);
  let leaving = false;
  const cancel = () => { leaving = true; return ask(`/api/jobs/${job.id}`, undefined, "DELETE"); };
  follow(job, cancel);
  while (job.state === "waiting" || job.state === "running") {
    job = await ask(`/api/jobs/${job.id}?wait=${leaving ? 5 : 1}`);
    follow(job, cancel);
  }
  if (job.state === "failed") throw new Refused(job.problem);
  return job.state === "done" ? job : null;
}

function bytes(text) { return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer; }
export const floats = (text) => new Float32Array(bytes(text));
export const ints = (text) => new Int32Array(bytes(text));
export const png = (text) => `data:image/png;base64,${text}`;

// Puts these into an element, and nothing else; what is null is left out.
// Whoever works by keyboard stays where they were.
export function fill(where, ...inside) {
  const had = where.contains(document.activeElement) ? document.activeElement : null;
  const name = (one) => one.id || one.dataset.token || one.textContent;
  where.replaceChildren(...inside.flat().filter((one) => one !== null && one !== undefined));
  if (had && !had.isConnected) [...where.querySelectorAll(had.tagName)].find((one) => name(one) === name(had))?.focus();
}

// An element: h("button.main", { onclick }, "text", child, ...)
export function h(kind, about = {}, ...inside) {
  const [tag, ...classes] = kind.split(".");
  const made = document.createElement(tag);
  made.className = classes.join(" ");
  for (const [name, value] of Object.entries(about)) {
    if (value === undefined || value === null || value === false) continue;
    if (name in made) made[name] = value; else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...inside.flat().filter((one) => one !== null && one !== undefined));
  return made;
}
