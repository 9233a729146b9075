// The page of customers: ask, say what a reply is worth, reach a person, rate the conversation.
import { ask, attempt, by, el, say, shown, signedIn, signOut } from "./page.js";

const TALKS = "/api/v1/conversations";
const KEPT = "support_rag.talk";
const thumbs = {}; // id of a reply → verdict, of this visit
const state = { me: null, id: sessionStorage.getItem(KEPT), drawn: "", standing: "" };
const reasons = { wrong: "Wrong", incomplete: "Incomplete", outdated: "Outdated", irrelevant: "Another question", rude: "Rude" };

async function judge(id, verdict, reason) {
  await ask("POST", `/api/v1/messages/${id}/feedback`, { verdict, ...(reason ? { reason } : {}) });
  thumbs[id] = verdict;
  await draw(true);
}

function judged(message) {
  const thumb = (verdict, label) => el(
    "button",
    {
      type: "button", className: `thumb ${thumbs[message.id] === verdict ? "pressed" : ""}`,
      "aria-pressed": String(thumbs[message.id] === verdict), onclick: attempt(() => judge(message.id, verdict)),
    },
    label,
  );
  const why = el(
    "select",
    { "aria-label": "Why not?", onchange: attempt((event) => judge(message.id, "down", event.target.value)) },
    el("option", { value: "" }, "Why not?"), ...Object.entries(reasons).map(([value, text]) => el("option", { value }, text)),
  );
  return el(
    "div", { className: "row" }, thumb("up", "Helpful"), thumb("down", "Not helpful"),
    thumbs[message.id] === "down" ? why : null,
  );
}

function said(message) {
  const names = { user: "You", assistant: "Assistant", agent: message.author?.name }[message.role];
  return shown(message, { mine: message.role === "user", names, more: message.role === "assistant" ? judged(message) : null });
}

async function draw(again = false) {
  if (!state.id) return;
  const id = state.id;
  const talk = await ask("GET", `${TALKS}/${id}`);
  if (id !== state.id) return;
  const standing = `${talk.status} ${talk.assignee?.name}`;
  if (standing !== state.standing) say(""); // what was said before is not so any more
  state.standing = standing;
  by("state").textContent = talk.assignee ? `${talk.assignee.name} answers you`
    : { open: "", handed_off: "A person was asked for", resolved: "Resolved", closed: "Closed" }[talk.status];
  by("person").hidden = talk.status !== "open" && talk.status !== "resolved";
  by("rating").hidden = talk.status !== "resolved" && talk.status !== "closed";
  by("ask").hidden = talk.status === "closed";
  for (const button of by("rating").querySelectorAll("button")) {
    button.classList.toggle("pressed", Number(button.value) === talk.rating);
  }
  const now = JSON.stringify(talk.messages);
  if (now === state.drawn && !again) return;
  const isNew = now !== state.drawn;
  state.drawn = now;
  by("messages").replaceChildren(...talk.messages.map(said));
  if (isNew) by("messages").scrollTop = by("messages").scrollHeight;
}

async function talkOf() {
  if (!state.id) {
    const made = await ask("POST", TALKS, {});
    sessionStorage.setItem(KEPT, (state.id = made.id));
  }
  return `${TALKS}/${state.id}`;
}

function forget() {
  sessionStorage.removeItem(KEPT);
  Object.assign(state, { id: null, drawn: "" });
  by("messages").replaceChildren(el("p", { className: "soft" }, "Ask what you want to know. A person can take over."));
  by("rating").hidden = true;
  by("ask").hidden = by("person").hidden = false;
  by("state").textContent = "";
}

function listen() {
  by("ask").addEventListener("submit", attempt(async () => {
    const content = by("said").value;
    const path = await talkOf();
    by("state").textContent = "…";
    const work = ask("POST", `${path}/messages`, { content });
    by("said").value = "";
    try {
      await work;
    } catch (error) {
      by("said").value = content;
      throw error;
    } finally {
      await draw();
    }
  }));
  by("said").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      by("ask").requestSubmit();
    }
  });
  by("person").addEventListener("click", attempt(async () => {
    const asked = await ask("POST", `${await talkOf()}/hand-off`);
    await draw();
    say(asked.notice || "A person from support will answer here.");
  }));
  by("rating").addEventListener("submit", attempt(async (event) => {
    const score = Number(event.submitter.value);
    await ask("POST", `${TALKS}/${state.id}/rating`, { score, comment: by("comment").value });
    await draw(true);
    say("Thank you.");
  }));
  by("new").addEventListener("click", forget);
  by("sign-out").addEventListener("click", () => { sessionStorage.removeItem(KEPT); return signOut(); });
}

async function look() {
  try {
    if (!document.hidden) await draw();
  } catch (error) {
    if (error.status === 404) forget();
    else say(error.message, true);
  } finally {
    setTimeout(look, 3000);
  }
}

state.me = await signedIn();
by("tenant").textContent = state.me.tenant.name;
by("top").hidden = by("chat").hidden = false;
listen();
if (!state.id) forget();
look();
