import { currentKey } from "../api/client";

/** An event of the gateway's log, or a figure that is told and not kept. */
export interface LiveEvent {
  type: string;
  timestamp: string;
  seq?: number;
  [member: string]: unknown;
}

export type LiveState =
  | { kind: "connecting" }
  | { kind: "live" }
  | { kind: "waiting"; retryAt: number; attempt: number };

const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 15_000;
const SILENCE_MS = 30_000;
/** So long a group of events waits for a frame at most: of a window that nobody can see none may come. */
const FRAME_MS = 250;
const PROTOCOL = "toolscore.events";

/** What a page hears of without asking for it by name. */
export const KEPT_EVENTS = [
  "tool_installed", "tool_updated", "tool_removed", "tool_quarantined", "tool_released", "tool_disabled", "tool_enabled",
  "server_up", "server_down", "server_idle", "circuit_changed", "install_started", "install_progress",
  "install_failed", "gap_detected", "approval_needed", "approval_ended", "settings_applied", "settings_rejected", "lagged",
]; // prettier-ignore

/**
 * The one socket of a page: connects again with growing pauses, and goes on where it stopped.
 *
 * `url`: of the gateway's events. Listeners hear events in groups, one a frame of the screen.
 */
export class LiveSocket {
  state: LiveState = { kind: "connecting" };
  /** The newest event that was heard; `null`: none yet. */
  seq: number | null = null;

  #socket: WebSocket | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #silence: ReturnType<typeof setTimeout> | undefined;
  #attempt = 0;
  #users = 0;
  #pending: LiveEvent[] = [];
  #frame: number | null = null;
  #late: ReturnType<typeof setTimeout> | undefined;
  readonly #listeners = new Set<(events: LiveEvent[]) => void>();
  readonly #watchers = new Set<() => void>();

  constructor(readonly url: string) {}

  /** Stays connected until the returned function is called. */
  hold(): () => void {
    if (this.#users++ === 0) {
      document.addEventListener("visibilitychange", this.#seen);
      this.#connect();
    }
    return () => {
      if (--this.#users === 0) this.#close();
    };
  }

  /** Hears events. Returns how to stop that. */
  onEvents(listener: (events: LiveEvent[]) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Hears that `state` has changed. Returns how to stop that. */
  onState(watcher: () => void): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** Connects now, whatever pause there would have been. */
  retry(): void {
    if (this.#users === 0) return;
    this.#drop();
    this.#connect();
  }

  #connect(): void {
    clearTimeout(this.#timer);
    this.#become({ kind: "connecting" });
    const key = currentKey();
    const socket = new WebSocket(this.#address(), key === null ? [PROTOCOL] : [PROTOCOL, `toolscore.bearer.${key}`]);
    this.#socket = socket;
    this.#heard();
    socket.onmessage = (message: MessageEvent<string>) => {
      if (this.#socket === socket) this.#take(message.data);
    };
    socket.onclose = () => {
      if (this.#socket === socket) this.#lost();
    };
  }

  #address(): string {
    const query = new URLSearchParams({ events: [...KEPT_EVENTS, "stats_update"].join(","), tools: "false" });
    if (this.seq !== null) query.set("since", String(this.seq));
    return `${this.url}?${query}`;
  }

  #take(text: string): void {
    this.#heard();
    const event = JSON.parse(text) as LiveEvent;
    if (event.type === "welcome") {
      if (this.seq === null || (event.seq ?? 0) < this.seq) this.seq = event.seq ?? null;
      this.#attempt = 0;
      this.#become({ kind: "live" });
      return;
    }
    if (event.type === "lagged" && typeof event["resume_from"] === "number") {
      this.seq = event["resume_from"];
      this.#drop();
      this.#lost();
    }
    if (event.seq !== undefined && event.seq !== null) {
      if (this.seq !== null && event.seq <= this.seq) return;
      this.seq = event.seq;
    }
    this.#pending.push(event);
    if (document.hidden) this.#tell(); // no frame comes while nobody looks
    else if (this.#frame === null) {
      this.#frame = requestAnimationFrame(() => this.#tell());
      this.#late = setTimeout(() => this.#tell(), FRAME_MS);
    }
  }

  #tell(): void {
    this.#forgetFrame();
    const events = this.#pending;
    this.#pending = [];
    for (const listener of this.#listeners) {
      try {
        listener(events);
      } catch (error) {
        reportError(error); // the others hear of them all the same
      }
    }
  }

  #forgetFrame(): void {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    clearTimeout(this.#late);
  }

  #heard(): void {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      this.#drop();
      this.#lost();
    }, SILENCE_MS);
  }

  #lost(): void {
    clearTimeout(this.#silence);
    this.#socket = null;
    if (this.#users === 0) return;
    const pause = Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#attempt) * (0.75 + Math.random() / 2);
    this.#attempt += 1;
    this.#become({ kind: "waiting", retryAt: Date.now() + pause, attempt: this.#attempt });
    this.#timer = setTimeout(() => this.#connect(), pause);
  }

  #drop(): void {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  readonly #seen = (): void => {
    if (this.#pending.length > 0) this.#tell();
    if (!document.hidden && this.state.kind === "waiting") this.retry();
  };

  #close(): void {
    document.removeEventListener("visibilitychange", this.#seen);
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    this.#forgetFrame();
    this.#pending = [];
    this.#drop();
  }

  #become(state: LiveState): void {
    this.state = state;
    for (const watcher of this.#watchers) watcher();
  }
}

const sockets = new Map<string, LiveSocket>();

/** The socket of a URL, the same for all who ask. */
export function liveSocket(url: string): LiveSocket {
  let socket = sockets.get(url);
  if (socket === undefined) sockets.set(url, (socket = new LiveSocket(url)));
  return socket;
}

/** The events of the gateway that served this page. */
export function eventsUrl(): string {
  return `${window.location.origin.replace(/^http/, "ws")}/api/v1/events/tools`;
}
