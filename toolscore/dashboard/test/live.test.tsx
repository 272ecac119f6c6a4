import { act, cleanup, renderHook } from "@testing-library/react";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { useConnection, useToolEvents, useWebSocketStats } from "../src/live/hooks";
import { LiveSocket, liveSocket, type LiveEvent } from "../src/live/socket";
import { showKey } from "../src/api/client";

/** A WebSocket whose other end is the test. */
class Wire {
  static all: Wire[] = [];
  onmessage: ((message: { data: string }) => void) | null = null;
  onclose: (() => void) | null = null;
  closed = false;

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {
    Wire.all.push(this);
  }

  close(): void {
    this.closed = true;
  }

  say(event: Partial<LiveEvent>): void {
    this.onmessage?.({ data: JSON.stringify({ timestamp: "2026-11-28T00:00:00Z", ...event }) });
  }

  welcome(seq: number): void {
    this.say({ type: "welcome", seq });
  }

  static get last(): Wire {
    return Wire.all.at(-1) as Wire;
  }

  static since(): string | null {
    return new URL(Wire.last.url).searchParams.get("since");
  }
}

const URL_ = (): string => `ws://gateway.test/${Math.random()}`;
const frame = (): Promise<unknown> => act(() => vi.advanceTimersByTimeAsync(20));

beforeEach(() => {
  Wire.all = [];
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval", "Date", "requestAnimationFrame", "cancelAnimationFrame"] });
  vi.stubGlobal("WebSocket", Wire);
  vi.spyOn(Math, "random").mockReturnValue(0.5);
});

afterEach(() => {
  cleanup();
  showKey(null, false);
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("useWebSocketStats", () => {
  it("gives the figures of each second, and says whether it is connected", async () => {
    const { result } = renderHook(() => useWebSocketStats("ws://gateway.test/stats"));
    expect(result.current).toEqual({ stats: null, connected: false });
    act(() => Wire.last.welcome(3));
    expect(result.current.connected).toBe(true);
    Wire.last.say({ type: "stats_update", payload: { calls_total: 7 } });
    await frame();
    expect(result.current.stats).toEqual({ calls_total: 7 });
    act(() => Wire.last.onclose?.());
    expect(result.current).toEqual({ stats: { calls_total: 7 }, connected: false });
  });

  it("shares one socket among all who ask, and closes it behind the last", () => {
    const one = renderHook(() => useWebSocketStats("ws://gateway.test/shared"));
    const two = renderHook(() => useWebSocketStats("ws://gateway.test/shared"));
    expect(Wire.all).toHaveLength(1);
    one.unmount();
    expect(Wire.last.closed).toBe(false);
    two.unmount();
    expect(Wire.last.closed).toBe(true);
  });
});

describe("useToolEvents", () => {
  it("hears what it asks for, in groups of a frame", async () => {
    const heard: LiveEvent[][] = [];
    renderHook(() => useToolEvents((events) => heard.push(events), ["tool_installed"], "ws://gateway.test/tools"));
    Wire.last.welcome(0);
    for (let seq = 1; seq <= 1000; seq++) Wire.last.say({ type: seq % 2 ? "tool_installed" : "server_up", seq });
    expect(heard).toHaveLength(0);
    await frame();
    expect(heard).toHaveLength(1);
    expect(heard[0]).toHaveLength(500);
  });
});

describe("useConnection", () => {
  it("says when it is tried again, and can be told to do so now", async () => {
    const { result } = renderHook(() => useConnection("ws://gateway.test/connection"));
    act(() => Wire.last.onclose?.());
    expect(result.current.state).toMatchObject({ kind: "waiting", attempt: 1 });
    act(() => result.current.retry());
    expect(Wire.all).toHaveLength(2);
    expect(result.current.state).toEqual({ kind: "connecting" });
  });
});

describe("LiveSocket", () => {
  it("goes on behind the last event that it heard, and tells none twice", async () => {
    const socket = new LiveSocket(URL_());
    const heard: (number | undefined)[] = [];
    socket.onEvents((events) => heard.push(...events.map((one) => one.seq)));
    const release = socket.hold();
    expect(Wire.since()).toBeNull();
    Wire.last.welcome(4);
    Wire.last.say({ type: "server_up", seq: 5 });
    await frame();
    Wire.last.onclose?.();
    await act(() => vi.advanceTimersByTimeAsync(600));
    expect(Wire.since()).toBe("5");
    Wire.last.welcome(7);
    for (const seq of [5, 6, 7, 7, 8]) Wire.last.say({ type: "server_up", seq });
    await frame();
    expect(heard).toEqual([5, 6, 7, 8]);
    release();
  });

  it("waits longer and longer, and no longer than a quarter of a minute", async () => {
    const socket = new LiveSocket(URL_());
    const release = socket.hold();
    const pauses: number[] = [];
    for (let attempt = 0; attempt < 8; attempt++) {
      Wire.last.onclose?.();
      if (socket.state.kind !== "waiting") throw new Error(socket.state.kind);
      pauses.push(socket.state.retryAt - Date.now());
      await act(() => vi.advanceTimersByTimeAsync(20_000));
    }
    expect(pauses).toEqual([500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    release();
  });

  it("asks again for what it missed", async () => {
    const socket = new LiveSocket(URL_());
    const heard: string[] = [];
    socket.onEvents((events) => heard.push(...events.map((one) => one.type)));
    const release = socket.hold();
    Wire.last.welcome(0);
    Wire.last.say({ type: "server_up", seq: 1 });
    Wire.last.say({ type: "lagged", missed: 20, resume_from: 1 });
    await act(() => vi.advanceTimersByTimeAsync(600));
    expect(Wire.since()).toBe("1");
    expect(heard).toContain("lagged");
    release();
  });

  it("takes a gateway that begins anew as it is", async () => {
    const socket = new LiveSocket(URL_());
    const release = socket.hold();
    Wire.last.welcome(100);
    Wire.last.onclose?.();
    await act(() => vi.advanceTimersByTimeAsync(600));
    Wire.last.welcome(2);
    expect(socket.seq).toBe(2);
    release();
  });

  it("tells what it heard also where no frame comes, and to all, whoever of them fails", async () => {
    vi.stubGlobal("requestAnimationFrame", () => 1);
    const reported: unknown[] = [];
    vi.stubGlobal("reportError", (error: unknown) => reported.push(error));
    const socket = new LiveSocket(URL_());
    const heard: (number | undefined)[] = [];
    socket.onEvents(() => {
      throw new Error("broken");
    });
    socket.onEvents((events) => heard.push(...events.map((one) => one.seq)));
    const release = socket.hold();
    Wire.last.welcome(0);
    Wire.last.say({ type: "server_up", seq: 1 });
    await act(() => vi.advanceTimersByTimeAsync(300));
    expect(heard).toEqual([1]);
    Wire.last.say({ type: "server_up", seq: 2 });
    await act(() => vi.advanceTimersByTimeAsync(300));
    expect(heard).toEqual([1, 2]);
    expect(reported).toHaveLength(2);
    release();
  });

  it("tries again where nobody answers a connection", async () => {
    const socket = new LiveSocket(URL_());
    const release = socket.hold();
    await act(() => vi.advanceTimersByTimeAsync(31_000));
    expect(Wire.all).toHaveLength(2);
    release();
  });

  it("takes silence for a connection that is gone", async () => {
    const socket = new LiveSocket(URL_());
    const release = socket.hold();
    Wire.last.welcome(0);
    await act(() => vi.advanceTimersByTimeAsync(30_100));
    expect(socket.state.kind).toBe("waiting");
    release();
  });

  it("shows its key where the address does not, and never in it", () => {
    showKey("ts_secret", false);
    const release = liveSocket("ws://gateway.test/key").hold();
    expect(Wire.last.url).not.toContain("secret");
    expect(Wire.last.protocols).toEqual(["toolscore.events", "toolscore.bearer.ts_secret"]);
    release();
  });
});
