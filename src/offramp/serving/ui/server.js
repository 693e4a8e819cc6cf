// Requests to the server. The key stays in the memory of this page.

import { $ } from "./elements.js";

let key = "";

export async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { cache: "no-store", ...options, headers: { ...headers, ...options.headers } });
  if (answer.status === 401) askForKey();
  const body = await answer.json().catch(() => ({})); // a proxy may answer in its own form
  if (!answer.ok) throw new Error(body.error ?? `the answer has status ${answer.status}`);
  return body;
}

function askForKey() {
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
}

/** Call back whenever a key was typed. */
export function onKey(used) {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = $("key").value.trim();
    $("key").value = "";
    $("key-form").hidden = true;
    used();
    $("text").focus();
  });
}
