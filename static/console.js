// The console's own script: rows that are swapped by id, dialogs, errors as toasts, and the live stream.
// Everything it shows was rendered by the server; it never builds HTML from data.

// hx-swap="rows": take over only what differs, so that focus, selection and scroll stay where they are.
htmx.defineExtension("rows", {
  isInlineSwap: (style) => style === "rows",
  handleSwap: (style, target, fragment) => {
    if (style !== "rows") return false;
    if (isLive && isAiming()) return later(), true;
    const focused = document.activeElement;
    const aimedAt = underThePointer();
    for (const fresh of fragment.querySelectorAll("[data-part]")) {
      const old = document.getElementById(fresh.id);
      if (old) takeOver(old, fresh);
    }
    for (const fresh of fragment.querySelectorAll("[data-rows]")) swapRows(document.getElementById(fresh.id), fresh);
    // What had the focus is gone with its row: on with the receipt, not from the top of the page.
    if (!focused.isConnected && document.activeElement === document.body) status.focus({ preventScroll: true });
    if (aimedAt && aimedAt !== underThePointer()) beSeen(target);
    return true;
  },
});

// Who points at a button is about to press it: no row moves until he has, or has rested for 3 s. Where another row has
// come under the pointer all the same, a click counts only once that can have been seen.
let pointer = { x: -1, y: -1 };
let aimed = 0;
const isAiming = () => Date.now() - aimed < 3000;
const underThePointer = () => document.elementFromPoint(pointer.x, pointer.y)?.closest("[data-rows] > tr")?.id;
for (const type of ["pointermove", "pointerdown"]) {
  document.addEventListener(type, ({ clientX: x, clientY: y, target }) => {
    pointer = { x, y };
    aimed = target.closest("[data-rows] button") ? Date.now() : 0;
  });
}
document.addEventListener("click", () => (aimed = 0));
function beSeen(table) {
  table.classList.add("moved");
  setTimeout(() => table.classList.remove("moved"), 700);
}

// What the server sent for each part: what htmx marks meanwhile (a button whose request is under way) is no difference.
const served = new WeakMap();
const remember = (element) => served.set(element, element.innerHTML);
document.querySelectorAll("[data-part], [data-rows] > *").forEach(remember);

// An element whose own request is under way must stay, or htmx drops the answer: the receipt of «End session».
const isBusy = (element) => element.matches(".htmx-request") || element.querySelector(".htmx-request") !== null;

// Whether the table asked by itself: who has changed the filter or the page knows why other rows are there.
let isLive = false;

function swapRows(body, fresh) {
  let place = body.firstElementChild;
  for (const row of [...fresh.children]) {
    const old = document.getElementById(row.id);
    if (!old) {
      if (isLive) row.classList.add("arrived");
      body.insertBefore(row, place);
      remember(row);
      htmx.process(row);
    } else {
      if (old === place) place = place.nextElementSibling;
      else body.insertBefore(old, place);
      takeOver(old, row);
    }
  }
  while (place) {
    const gone = place;
    place = place.nextElementSibling;
    if (isBusy(gone)) later();
    else gone.remove();
  }
}

const linksOf = (element) => [...element.querySelectorAll("a[href]:not([id])")];

function takeOver(old, fresh) {
  if (served.get(old) === fresh.innerHTML) return;
  if (isBusy(old)) return later();
  const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
  const link = linksOf(old).indexOf(document.activeElement);
  old.replaceWith(fresh);
  remember(fresh);
  htmx.process(fresh);
  // By its id, so that it never comes to another action; a link without one, which only shows, by its place.
  if (focused) document.getElementById(focused)?.focus();
  else linksOf(fresh)[link]?.focus();
}

const later = () => {
  tags.clear();
  setTimeout(() => look(TOPICS), 300);
};

// Nobody may store what shows sessions, so the browser itself would not ask whether a table has changed.
const tags = new Map();
const asked = (config) => `${config.path}?${new URLSearchParams(config.parameters)}`;
document.addEventListener("htmx:configRequest", ({ detail }) => {
  const [address, tag] = tags.get(detail.target) ?? [];
  if (tag && address === asked(detail)) detail.headers["If-None-Match"] = tag;
});
document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  const tag = detail.xhr.getResponseHeader("ETag");
  isLive = detail.requestConfig.elt === detail.target;
  detail.requestConfig.elt.classList.remove("htmx-request"); // its answer is here: it may be replaced («Next page»)
  if (detail.xhr.status === 304) detail.shouldSwap = false;
  else if (tag) tags.set(detail.target, [asked(detail.requestConfig), tag]);
});

// Dialogs: shown when htmx has taken charge of them (before that, Enter would send the form without it), closed by
// Cancel, Escape, or when what they asked for is done.
document.addEventListener("htmx:afterSettle", (event) => {
  const dialog = event.detail.target.id === "dialog-place" ? event.detail.target.querySelector("dialog") : null;
  if (!dialog) return;
  const opener = document.activeElement?.id;
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (opener) (document.getElementById(opener) ?? status).focus();
  });
  // What is under way can't be cancelled, and its answer would be lost with the dialog.
  dialog.addEventListener("cancel", (event) => isBusy(dialog) && event.preventDefault());
  dialog.showModal();
  (dialog.querySelector("input:not([type=hidden])") ?? dialog).focus();
  const phrase = dialog.querySelector("[data-phrase]");
  if (phrase) {
    const submit = dialog.querySelector("button[type=submit]");
    const check = () => (submit.disabled = phrase.value.trim() !== phrase.dataset.phrase);
    phrase.addEventListener("input", check);
    check();
  }
});
// Whoever holds Enter, or clicks twice, means the button that he began with: not the one in the dialog that it opened,
// nor that of the row which has come to its place.
document.addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.preventDefault(), true);
document.addEventListener(
  "click",
  (event) => {
    if (event.detail < 2 || !event.target.closest("dialog [type=submit], [data-rows] button")) return;
    event.preventDefault();
    event.stopPropagation();
  },
  true,
);
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
  const dismissed = event.target.closest("[data-dismiss]")?.parentElement;
  if (!dismissed) return;
  if (status?.contains(dismissed)) status.replaceChildren();
  else dismissed.remove();
  status?.focus({ preventScroll: true });
});
document.addEventListener("lastcall:done", () => {
  document.querySelector("dialog[open]")?.close();
  look(TOPICS);
});

// A session that has been ended is not ended again while its row is still there.
document.addEventListener("htmx:afterRequest", ({ detail }) => {
  if (detail.successful && isChange(detail) && detail.elt.closest("[data-rows]")) detail.elt.disabled = true;
});

// A button that is disabled while it is at work loses the focus: it has it again, or the receipt has, and not the top of
// the page.
document.addEventListener("htmx:beforeRequest", ({ detail }) => {
  const focused = document.activeElement;
  if (!isChange(detail) || !detail.elt.contains(focused)) return;
  detail.xhr.addEventListener("loadend", () => {
    if (document.activeElement !== focused && document.activeElement !== document.body) return;
    (focused.isConnected && !focused.disabled ? focused : status).focus({ preventScroll: true });
  });
});

// Errors: what happened, why, what to do next; the server's words.
document.addEventListener("htmx:responseError", ({ detail }) => {
  let problem = {};
  try {
    problem = JSON.parse(detail.xhr.responseText);
  } catch {
    problem.detail = `The server answered ${detail.xhr.status}. ${whatNow(detail)}`;
  }
  if (isTable(detail.target) && problem.errors && sayAtTheFilter(problem.errors)) markAsOld(detail.target);
  else fail(detail, problem.detail);
});
document.addEventListener("htmx:sendError", ({ detail }) =>
  fail(detail, `The server can't be reached. ${whatNow(detail)}`),
);
document.addEventListener("htmx:timeout", ({ detail }) => fail(detail, `There has been no answer yet. ${whatNow(detail)}`));
const whatNow = (detail) =>
  isChange(detail)
    ? "It may have been done all the same: look at the history before you try again."
    : "Nothing was changed: try again.";

// A table that can't be had is not called fresh: it shows what was so when it was last answered.
const clock = () => new Date().toISOString().slice(11, 19);
const opened = clock();
const answered = new WeakMap();
const isTable = (element) => element.matches("[data-live]");
const markAsOld = (table) => (table.dataset.stale ??= `As of ${answered.get(table) ?? opened} UTC`);
document.addEventListener("htmx:afterRequest", ({ detail: { elt, successful, target } }) => {
  if (!successful || !isTable(target)) return;
  // What a search has found is read aloud to who asked for it (WCAG 2.2, 4.1.3); what only arrives is not.
  const found = elt === target ? null : target.querySelector("[data-found]");
  if (found) document.getElementById("found").textContent = found.textContent;
  answered.set(target, clock());
  delete target.dataset.stale;
  document.querySelector("#toasts .look")?.remove();
  sayAtTheFilter([]);
});

// What is wrong with the filter stands beside it for as long as it does: the table shows what was found before.
function sayAtTheFilter(errors) {
  const place = document.querySelector("#filter [role=alert]");
  if (!place) return false;
  for (const field of place.closest("form").elements) {
    if (errors.some((error) => error.field === field.name)) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
  const text = errors.map((error) => `Not filtered: ${error.message}.`).join(" ");
  if (place.textContent !== text) place.textContent = text; // or it would be read aloud at each look
  return true;
}

// In the dialog only what the dialog itself asked for: a table behind it may look, and fail, meanwhile.
// It stays until it is over (a look), or until the next act or its ×: nobody knows how long one takes to read it. A look
// that fails again for the same reason is not read aloud again, and does not cover what an act was told.
function fail({ elt, target }, text) {
  const kind = isTable(target) ? "look" : "act";
  if (kind === "look") markAsOld(target);
  const dialog = elt.closest("dialog");
  const place = dialog?.querySelector("form") ?? document.getElementById("toasts");
  const old = place.querySelector(`.${kind}`);
  if (kind === "look" && old?.textContent === text) return;
  old?.remove();
  const alert = document.createElement("div");
  alert.className = `${kind} alert alert-danger shadow mb-0 pe-auto`;
  alert.setAttribute("role", "alert");
  alert.textContent = text;
  if (!dialog) {
    const button = document.createElement("button");
    button.className = "btn-close";
    button.dataset.dismiss = "";
    button.setAttribute("aria-label", "Dismiss");
    alert.classList.add("alert-dismissible");
    alert.append(button);
  }
  place.insertBefore(alert, place.querySelector(".answers")); // in a dialog where one looks: at the button
  alert.scrollIntoView({ block: "nearest" });
}
document.addEventListener("htmx:beforeRequest", ({ detail: { target } }) => {
  if (!isTable(target)) document.querySelectorAll(".act").forEach((alert) => alert.remove());
});

// Live: one stream a visible tab. It only says that something has changed; the tables then ask for themselves.
const status = document.querySelector("[data-events]");
const badge = document.querySelector("[data-live-badge]");
const TOPICS = ["sessions", "revocation", "workers"];
let stream = null;
let silence = 0;
let polling = 0;
let waiting = new Set();

function look(topics, delay = 100) {
  if (waiting.size === 0) setTimeout(refresh, delay);
  topics.forEach((topic) => waiting.add(topic));
}

function refresh() {
  const topics = waiting;
  waiting = new Set();
  for (const table of document.querySelectorAll("[data-live]")) {
    const wanted = table.dataset.live.split(" ").filter((topic) => topics.has(topic));
    if (wanted.length === 0) continue;
    if (isChanging() || isBusy(table) || isAiming()) look(wanted, 200);
    else htmx.trigger(table, "lastcall:changed");
  }
}

// Whoever signs himself out is led to the door by the answer to that, which holds the proof: no table may be first.
const changes = new Map();
const isChanging = () => [...changes.values()].some((until) => Date.now() < until);
const isChange = (detail) => detail.requestConfig.verb !== "get";
const leadsAway = (detail) => detail.xhr.getResponseHeader("HX-Redirect") !== null;
document.addEventListener("htmx:beforeSend", ({ detail }) => {
  if (!isChange(detail)) return;
  status.replaceChildren(); // an older receipt is none for this
  changes.set(detail.xhr, Date.now() + detail.requestConfig.timeout);
  detail.xhr.addEventListener("loadend", () => leadsAway(detail) || changes.delete(detail.xhr));
});
document.addEventListener("submit", ({ target }) => {
  if (target.method === "post") changes.set(target, Date.now() + htmx.config.timeout);
});
document.addEventListener("htmx:beforeOnLoad", (event) => {
  if (isChanging() && leadsAway(event.detail) && !isChange(event.detail)) event.preventDefault();
});

function show(text, kind) {
  badge.textContent = text;
  badge.className = `badge text-bg-${kind}`;
}

function poll(on) {
  clearInterval(polling);
  polling = on ? setInterval(() => look(TOPICS), 5000) : 0;
}

function connect() {
  if (!status || stream || document.hidden) return;
  stream = new EventSource(status.dataset.events);
  hear();
  stream.onopen = () => {
    hear();
    show("Live", "success");
    poll(false);
    look(TOPICS);
  };
  for (const topic of ["beat", ...TOPICS]) {
    stream.addEventListener(topic, () => {
      hear();
      look([topic]); // of a new user or role no topic tells: that table looks at each beat
    });
  }
  stream.onerror = () => {
    // Refused (signed out, or no place is free) or cut: look by polling, and try for a stream again.
    show(stream.readyState === EventSource.CLOSED ? "Polling every 5 s" : "Reconnecting", "warning");
    if (!polling) poll(true);
    look(["sessions"]);
    if (stream.readyState === EventSource.CLOSED) {
      disconnect();
      setTimeout(connect, 5000);
    }
  };
}

// A worker that was stopped and a frozen connection end no stream: that it lives, only its beat shows, every 5 s.
function hear() {
  clearTimeout(silence);
  silence = setTimeout(() => {
    disconnect();
    show("Reconnecting", "warning");
    if (!polling) poll(true);
    connect();
  }, 12000);
}

function disconnect() {
  clearTimeout(silence);
  stream?.close();
  stream = null;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    disconnect();
    poll(false);
  } else connect();
});
window.addEventListener("pagehide", disconnect);
connect();
