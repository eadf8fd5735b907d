// What the page asks of the head: requests whose refusals are sentences, and streams that come back by themselves.

export class Refusal extends Error {}

/** The JSON of a route. Throws a Refusal with the head's sentence. */
export async function call(method, path, body, kind = "application/json") {
  return (await answerOf(method, path, body, kind)).json();
}

/** The answer of a route. Throws a Refusal with the head's sentence. */
export async function answerOf(method, path, body, kind = "application/json") {
  const given = { method, headers: {} };
  if (body !== undefined) {
    given.body = kind === "application/json" ? JSON.stringify(body) : body;
    given.headers["Content-Type"] = kind;
  }
  let answer;
  try {
    answer = await fetch(path, given);
  } catch {
    throw new Refusal("The app does not answer; is it still running?");
  }
  if (answer.status === 401) location.reload(); // the page that asks for a key
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  const refusal = new Refusal(sentence(said?.error?.message ?? `The app answered ${answer.status}.`));
  refusal.status = answer.status;
  throw refusal;
}

/** Sentences of the head begin small, since they may stand within another one. */
export function sentence(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : text;
}

const FIRST_WAIT = 500;
const LONGEST_WAIT = 15000; // milliseconds
const HIDDEN = 1000; // that a tab keeps its stream

/** Server-sent events: `take` gets each, `state` hears "live" and "lost". Returns what ends it. */
export function follow(path, take, state) {
  let source = null;
  let wait = FIRST_WAIT;
  let timer = 0;
  let ended = false;

  function open() {
    if (ended || source) return;
    clearTimeout(timer);
    source = new EventSource(path);
    source.onopen = () => {
      wait = FIRST_WAIT;
      state("live");
    };
    source.onmessage = (event) => take(JSON.parse(event.data));
    source.onerror = () => {
      close();
      state("lost");
      timer = setTimeout(retry, wait);
      wait = Math.min(wait * 2, LONGEST_WAIT);
    };
  }
  // An EventSource does not say why it failed: a key that was revoked, or a conversation that is gone.
  async function retry() {
    const answer = await fetch("/version").catch(() => null);
    if (answer?.status === 401) location.reload();
    open();
  }
  function close() {
    source?.close();
    source = null;
  }
  // A browser has six connections to a host: a tab holds one, and none when nobody looks at it.
  function look() {
    clearTimeout(timer);
    if (document.visibilityState === "visible") open();
    else timer = setTimeout(close, HIDDEN);
  }
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    ended = true;
    clearTimeout(timer);
    close();
    document.removeEventListener("visibilitychange", look);
  };
}
