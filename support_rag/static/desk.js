// The page of agents: what waits, one conversation, and what is done with it.
import { ago, ask, attempt, by, el, say, shown, signedIn, signOut } from "./page.js";

const TALKS = "/api/v1/conversations";
const WHY = Object.fromEntries([...by("reason").options].map((one) => [one.value, one.textContent]));
const DONE = {
  hand_off: "Handed off", take_over: "Taken over", assignment: "Assigned", return: "Returned",
  resolve: "Resolved", reopen: "Reopened by the customer", close: "Closed", rating: "Rated",
};
const state = { me: null, part: "waiting", id: null, etag: null, drawn: "", asked: 0, limit: 30, drafts: {} };

function entry(one) {
  const who = one.asked_by || "A customer";
  return el(
    "button",
    { type: "button", className: "entry", "aria-current": String(one.id === state.id), onclick: attempt(() => open(one.id)) },
    el("b", {}, el("span", {}, who), el("span", { className: "soft" }, one.waiting_since ? `waits ${ago(one.waiting_since)}` : "answered")),
    el("span", { className: "said" }, one.last_question),
    el("span", { className: "soft" }, `${WHY[one.hand_off_reason]}${one.assignee ? ` · ${one.assignee.name}` : ""}`),
  );
}

async function list() {
  const query = new URLSearchParams({ limit: state.limit });
  if (state.part === "waiting") query.set("assigned", "false");
  if (state.part === "mine") query.set("assignee_id", state.me.user.id);
  if (by("reason").value) query.set("reason", by("reason").value);
  const { items, next_cursor } = await ask("GET", `/api/v1/queue?${query}`);
  const focused = document.activeElement?.closest?.("#entries") ? [...by("entries").children].indexOf(document.activeElement) : -1;
  by("entries").replaceChildren(
    ...(items.length ? items.map(entry) : [el("p", { className: "empty" }, "Nobody waits here.")]),
  );
  by("entries").children[focused]?.focus();
  by("more").hidden = !next_cursor || state.limit >= 100;
  for (const button of document.querySelectorAll("[data-part]")) {
    button.classList.toggle("pressed", button.dataset.part === state.part);
    button.setAttribute("aria-pressed", String(button.dataset.part === state.part));
  }
}

function head(talk) {
  const mine = talk.assignee?.id === state.me.user.id;
  const whose = talk.assignee ? `${mine ? "You have it" : `${talk.assignee.name} has it`}` : "The bot answers";
  const why = talk.hand_off_reason ? ` · ${WHY[talk.hand_off_reason]}` : "";
  const rated = talk.rating ? ` · rated ${talk.rating} of 5` : "";
  by("title").textContent = talk.title || "Conversation";
  by("state").textContent = `${talk.status.replace("_", " ")} · ${whose}${why}${rated}`;
  const over = talk.status === "closed";
  by("take").hidden = over || Boolean(talk.assignee);
  by("return").hidden = talk.status !== "handed_off";
  by("resolve").hidden = over || talk.status === "resolved";
  by("assign").hidden = over;
  by("reply").hidden = !mine;
}

function said(message) {
  const names = { user: "Customer", assistant: "Bot", agent: message.author?.name }[message.role];
  const why = message.reason && message.role === "assistant" ? ` · ${message.decision.replace("_", " ")}: ${message.reason.replaceAll("_", " ")}` : "";
  return shown(message, { mine: message.role !== "user", names: `${names} · ${new Date(message.created_at).toLocaleString()}${why}` });
}

function done(one) {
  const to = one.to ? ` to ${one.to.name}` : "";
  const why = one.reason ? `: ${WHY[one.reason]}` : "";
  const who = one.by && one.action !== "reopen" ? ` by ${one.by.name}` : "";
  return el("li", {}, `${DONE[one.action]}${to}${who}${why} · ${ago(one.created_at)}`);
}

async function draw(wanted = state.id) {
  const turn = ++state.asked;
  const path = `${TALKS}/${wanted}`;
  const [talk, notes, actions] = await Promise.all(
    [path, `${path}/notes`, `${path}/actions`].map((one) => ask("GET", one)),
  );
  if (wanted !== state.id || turn !== state.asked) return; // another one was opened meanwhile
  state.etag = talk.etag;
  head(talk);
  const now = JSON.stringify([talk.messages, notes.items, actions.items.length]);
  if (now === state.drawn) return;
  state.drawn = now;
  const newest = talk.messages.at(-1)?.id;
  by("messages").replaceChildren(...talk.messages.map(said));
  if (newest !== state.newest) by("messages").lastElementChild?.scrollIntoView({ block: "nearest" });
  state.newest = newest;
  by("notes").replaceChildren(
    ...notes.items.map((one) =>
      el("div", { className: "note" }, el("span", { className: "soft" }, `${one.author.name} · ${ago(one.created_at)}\n`), one.content)),
  );
  by("actions").replaceChildren(...actions.items.map(done));
}

async function open(id) {
  if (state.id) state.drafts[state.id] = [by("said").value, by("noted").value];
  Object.assign(state, { id, drawn: "", newest: null });
  [by("said").value, by("noted").value] = state.drafts[id] ?? ["", ""];
  by("desk").classList.add("open");
  by("nothing").hidden = true;
  for (const part of ["head", "messages", "aside"]) by(part).hidden = false;
  await Promise.all([draw(), list()]);
}

async function change(verb, body, headers = {}) {
  const id = state.id;
  try {
    await ask("POST", `${TALKS}/${id}/${verb}`, body, headers);
  } finally {
    await Promise.all([draw(), list()]);
  }
}

const sent = (form, field, verb) =>
  by(form).addEventListener("submit", attempt(async () => {
    const id = state.id;
    const content = by(field).value;
    await change(verb, { content });
    if (state.id === id) by(field).value = "";
  }));

async function colleagues() {
  const { items } = await ask("GET", "/api/v1/users?role=agent&role=admin&role=owner&limit=100");
  const them = items.filter((one) => !one.disabled_at);
  const option = (one) => el("option", { value: one.id }, one.name || one.email);
  by("assign").replaceChildren(el("option", { value: "" }, "Give to …"), ...them.map(option));
}

function listen() {
  by("sign-out").addEventListener("click", signOut);
  by("back").addEventListener("click", () => by("desk").classList.remove("open"));
  for (const button of document.querySelectorAll("[data-part]")) {
    button.addEventListener("click", attempt(() => { state.part = button.dataset.part; return list(); }));
  }
  by("reason").addEventListener("change", attempt(list));
  by("more").addEventListener("click", attempt(() => { state.limit = 100; return list(); }));
  by("take").addEventListener("click", attempt(() => change("take")));
  by("return").addEventListener("click", attempt(() => change("return")));
  by("resolve").addEventListener("click", attempt(() => change("resolve")));
  by("assign").addEventListener("change", attempt(async () => {
    const user_id = by("assign").value;
    by("assign").value = "";
    if (user_id) await change("assign", { user_id }, { "If-Match": state.etag });
  }));
  sent("reply", "said", "replies");
  sent("note", "noted", "notes");
  by("said").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("reply").requestSubmit();
  });
}

async function look() {
  try {
    if (!document.hidden) await Promise.all([list(), state.id ? draw() : null]);
  } catch (error) {
    say(error.message, true);
  } finally {
    setTimeout(look, 4000);
  }
}

state.me = await signedIn();
if (state.me.permissions.includes("support")) {
  by("who").textContent = `${state.me.user.name || state.me.user.email} · ${state.me.tenant.name}`;
  by("top").hidden = by("desk").hidden = false;
  listen();
  await attempt(colleagues)();
  look();
} else {
  by("top").hidden = false;
  by("sign-out").addEventListener("click", signOut);
  say("The desk is for people who answer customers: ask an admin to make you an agent.", true);
}
