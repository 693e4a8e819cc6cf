// The page of a server: what becomes of a text at each operating point, and what the server does.

import "./climb.js";
import { onKey } from "./server.js";
import { poll } from "./traffic.js";

onKey(poll);
document.addEventListener("visibilitychange", () => document.hidden || poll());
poll();
