import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import type { Stats } from "../api/client";
import { eventsUrl, liveSocket, type LiveEvent, type LiveState } from "./socket";

/** What the connection does, and how to try it again at once. */
export function useConnection(url: string = eventsUrl()): { state: LiveState; retry: () => void } {
  const socket = liveSocket(url);
  useEffect(() => socket.hold(), [socket]);
  const state = useSyncExternalStore((told) => socket.onState(told), () => socket.state);
  return { state, retry: () => socket.retry() };
}

/** Hears events as they happen, in groups of one a frame. `types`: `undefined` means all. */
export function useToolEvents(
  listener: (events: LiveEvent[]) => void,
  types?: readonly string[],
  url: string = eventsUrl(),
): void {
  const latest = useRef(listener);
  useEffect(() => {
    latest.current = listener;
  });
  const wanted = types?.join(" ");
  useEffect(() => {
    const socket = liveSocket(url);
    const release = socket.hold();
    const stop = socket.onEvents((events) => {
      const chosen = wanted === undefined ? events : events.filter((one) => wanted.split(" ").includes(one.type));
      if (chosen.length > 0) latest.current(chosen);
    });
    return () => {
      stop();
      release();
    };
  }, [url, wanted]);
}

/** The gateway's figures, each second; `stats` is `null` before the first. */
export function useWebSocketStats(url: string = eventsUrl()): { stats: Stats | null; connected: boolean } {
  const [stats, setStats] = useState<Stats | null>(null);
  const { state } = useConnection(url);
  useToolEvents((events) => setStats(events.at(-1)?.["payload"] as Stats), ["stats_update"], url);
  return { stats, connected: state.kind === "live" };
}
