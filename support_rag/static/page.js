// What the pages share: elements made of text, requests with a session, signing in.

export function el(name, values = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...inside.filter((one) => one !== null && one !== undefined && one !== ""));
  return made;
}

export const by = (id) => document.getElementById(id);

export function say(text, bad = false) {
  const status = by("status");
  status.textContent = text;
  status.classList.toggle("bad", bad);
  status.hidden = text === "";
}

const KEPT = "support_rag.refresh"; // one use each, and gone with the tab
let access = "";
let renewing = null;

function keep(tokens) {
  access = tokens.access_token;
  sessionStorage.setItem(KEPT, tokens.refresh_token);
}

async function send(method, path, body, headers = {}) {
  const sent = { method, headers: { ...headers }, cache: "no-store" };
  if (access) sent.headers.Authorization = `Bearer ${access}`;
  if (method === "POST") sent.headers["Idempotency-Key"] ??= crypto.randomUUID?.() ?? String(Math.random());
  if (path.startsWith("/api/v1/auth")) delete sent.headers["Idempotency-Key"];
  if (body !== undefined) {
    sent.body = JSON.stringify(body);
    sent.headers["Content-Type"] = "application/json";
  }
  return fetch(path, sent);
}

async function renew() {
  const token = sessionStorage.getItem(KEPT);
  if (!token) return false;
  const answer = await send("POST", "/api/v1/auth/refresh", { refresh_token: token });
  if (!answer.ok) {
    sessionStorage.removeItem(KEPT);
    return false;
  }
  keep(await answer.json());
  return true;
}

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || `The service answered ${status}.`);
    this.status = status;
  }
}

// Return what a route answers, or raise what it refuses with. A session that ended is renewed once.
export async function ask(method, path, body, headers = {}) {
  const once = { ...headers };
  if (method === "POST") once["Idempotency-Key"] ??= crypto.randomUUID?.() ?? String(Math.random());
  let answer = await send(method, path, body, once);
  if (answer.status === 401) {
    renewing ??= renew().finally(() => { renewing = null; });
    if (await renewing) answer = await send(method, path, body, once);
  }
  const known = answer.status === 204 ? {} : await answer.json();
  if (!answer.ok) throw new Refused(answer.status, known);
  return { status: answer.status, etag: answer.headers.get("ETag"), ...known };
}

export async function signOut() {
  try {
    await ask("POST", "/api/v1/auth/logout", {});
  } finally {
    sessionStorage.removeItem(KEPT);
    location.reload();
  }
}

// Show the form until somebody is signed in; return who that is.
export async function signedIn() {
  if (await renew()) return ask("GET", "/api/v1/me");
  const form = by("sign-in");
  form.hidden = false;
  return new Promise((done) => {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const { email, password } = form.elements;
      try {
        const sent = { email: email.value, password: password.value };
        keep(await ask("POST", "/api/v1/auth/login", sent));
        password.value = "";
        form.hidden = true;
        say("");
        done(await ask("GET", "/api/v1/me"));
      } catch (error) {
        say(error.message, true);
      }
    });
  });
}

// Return a listener that shows what goes wrong, and lets a button be pressed once at a time.
export const attempt = (work) => async (event) => {
  event?.preventDefault();
  const button = event?.submitter ?? (event?.currentTarget?.matches?.("button") ? event.currentTarget : null);
  if (button) button.disabled = true;
  try {
    say("");
    await work(event);
  } catch (error) {
    say(error.message, true);
  } finally {
    if (button) button.disabled = false;
  }
};

export function ago(time) {
  const minutes = Math.floor((Date.now() - new Date(time)) / 60000);
  if (minutes < 1) return "now";
  if (minutes < 60) return `${minutes} min`;
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} d`;
}

// Return a message as an element: text only, whatever a customer, a document or a model wrote.
export function shown(message, { mine, names, more }) {
  const sources = message.sources.map((source) => [
    el("div", {}, `[${source.number}] ${source.title}`), el("blockquote", {}, source.text),
  ]);
  return el(
    "article", { className: `message ${mine ? "ours" : "theirs"} ${message.role === "assistant" ? "bot" : ""}` },
    el("p", { className: "by" }, names), el("p", {}, message.content),
    sources.length ? el("details", {}, el("summary", {}, `Sources (${sources.length})`), ...sources.flat()) : null,
    more ?? null,
  );
}
