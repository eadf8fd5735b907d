// Exported conversations: saved as a file, with a word about what such a file has no room for.

import { answerOf } from "./api.js";
import { ask, el, say } from "./dom.js";
import { count } from "./turn.js";

const KEPT = 60000; // milliseconds that a browser has to save a file

/** Save what `path` exports, then as many further files as the user wants. */
export async function exported(path) {
  try {
    for (let next = path; next; ) {
      const answer = await answerOf("GET", next);
      save(await answer.blob(), nameOf(answer));
      next = await rest(path, answer);
    }
  } catch (refusal) {
    say(refusal.message, "error");
  }
}

/** Say what the file lacks; the address of the next part, where the user wants it. */
async function rest(path, answer) {
  const [left, files] = ["Together-Left-Out", "Together-Files-Left-Out"].map((name) => Number(answer.headers.get(name) ?? 0));
  const before = answer.headers.get("Together-Before");
  if (files) say(`The file is full: ${some(files, "attached file")} did not fit and ${files === 1 ? "is" : "are"} not in it.`, "error");
  if (left && !before) say(`${some(left, "conversation")} did not fit into a file that can be imported; export ${left === 1 ? "it" : "them"} as Markdown.`, "error");
  if (!left || !before) return null;
  const text = `This file is full: it has the newest conversations, and ${some(left, "older one")} ${left === 1 ? "is" : "are"} not in it.`;
  return (await ask({ title: "Export the rest?", text, yes: "Export the rest" })) ? `${path}?${new URLSearchParams({ before })}` : null;
}

function some(number, what) {
  return `${count(number)} ${what}${number === 1 ? "" : "s"}`;
}

function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT);
}

function nameOf(answer) {
  const [, name] = (answer.headers.get("Content-Disposition") ?? "").match(/filename\*=UTF-8''(.*)/) ?? [];
  return name ? decodeURIComponent(name) : "conversations.json";
}
