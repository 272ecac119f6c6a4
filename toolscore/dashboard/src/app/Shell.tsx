import { Link, Outlet, useRouterState } from "@tanstack/react-router";
import {
  Activity, Boxes, BugOff, Compass, HeartPulse, KeyRound, LayoutDashboard, Menu, Moon, Radio, Server, Settings, Sun, SunMoon, SquareTerminal, Wrench,
} from "lucide-react"; // prettier-ignore
import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import { queryClient, stats as statsQuery } from "../api/queries";
import { api, data } from "../api/client";
import { useConnection, useToolEvents } from "../live/hooks";
import { Series } from "../live/series";
import { applyEvents, refreshAll } from "../live/sync";
import { eventsUrl, liveSocket, type LiveState } from "../live/socket";
import { Button, Toasts, toast, useNow } from "../ui/basics";
import { Dialog } from "../ui/Dialog";
import { oneLine } from "../ui/text";
import { KeyForm, useMe } from "./session";
import { setTheme, storedTheme, type Theme } from "./theme";
import type { LiveEvent } from "../live/socket";
import type { Stats } from "../api/client";

export const PAGES = [
  { to: "/", title: "Overview", icon: LayoutDashboard, admin: false },
  { to: "/ui/tools", title: "Tools", icon: Wrench, admin: false },
  { to: "/ui/servers", title: "Servers", icon: Server, admin: false },
  { to: "/ui/calls", title: "Calls", icon: Activity, admin: false },
  { to: "/ui/discover", title: "Discover", icon: Compass, admin: false },
  { to: "/ui/python", title: "Python", icon: SquareTerminal, admin: false },
  { to: "/ui/errors", title: "Errors", icon: BugOff, admin: true },
  { to: "/ui/events", title: "Events", icon: Radio, admin: false },
  { to: "/ui/access", title: "Access", icon: KeyRound, admin: true },
  { to: "/ui/settings", title: "Settings", icon: Settings, admin: true },
  { to: "/ui/health", title: "Health", icon: HeartPulse, admin: false },
] as const;

/** The figures of the last 15 minutes; they grow on every page. */
export const series = new Series();
const seriesListeners = new Set<() => void>();

export function useSeries(): Series["points"] {
  return useSyncExternalStore(
    (told) => {
      seriesListeners.add(told);
      return () => seriesListeners.delete(told);
    },
    () => series.points,
  );
}

const SEEN_EVENTS = 10_000;
let seen: { newest: LiveEvent[]; total: number } = { newest: [], total: 0 };
const eventListeners = new Set<() => void>();

/** The newest events that this page heard, the oldest first, and how many it heard ever. */
export function useSeenEvents(): typeof seen {
  return useSyncExternalStore(
    (told) => {
      eventListeners.add(told);
      return () => eventListeners.delete(told);
    },
    () => seen,
  );
}

const TOLD: Record<string, (event: LiveEvent) => [string, "good" | "bad" | "warn"]> = {
  tool_quarantined: (event) => [`${oneLine(String(event["tool_id"]))} is quarantined: its definition changed`, "warn"],
  install_failed: (event) => [`${oneLine(String(event["name"]))} could not be installed`, "bad"],
  approval_needed: (event) => [`An install waits for approval: ${oneLine(String(event["task"]), 80)}`, "warn"],
  settings_rejected: (event) => [`A setting was refused: ${oneLine(String(event["reason"]), 120)}`, "bad"],
};

function take(events: LiveEvent[]): void {
  const kept: LiveEvent[] = [];
  for (const event of events) {
    if (event.type === "stats_update") {
      const now = event["payload"] as Stats;
      queryClient.setQueryData(statsQuery().queryKey, now);
      series.add(now, Date.now() / 1000);
      for (const told of seriesListeners) told();
      continue;
    }
    kept.push(event);
    const say = TOLD[event.type];
    if (say !== undefined) toast(...say(event));
  }
  if (kept.length === 0) return;
  seen = { newest: [...seen.newest, ...kept].slice(-SEEN_EVENTS), total: seen.total + kept.length };
  for (const told of eventListeners) told();
  applyEvents(kept);
}

/** What stands around every page: where one is, where one can go, and whether the page is live. */
export function Shell() {
  const me = useMe();
  const { state, retry } = useConnection();
  useToolEvents(take);
  const [menu, setMenu] = useState(false);
  const [askKey, setAskKey] = useState(false);
  const path = useRouterState({ select: (router) => router.location.pathname });
  const main = useRef<HTMLElement>(null);
  const lastPath = useRef(path);

  useEffect(() => {
    const before = Date.now() / 1000;
    void data(api.GET("/api/v1/stats/recent")).then(
      (recent) => {
        series.seed(recent, before);
        for (const told of seriesListeners) told();
      },
      () => undefined, // the charts begin now
    );
  }, []);

  useEffect(() => {
    if (lastPath.current !== path) {
      lastPath.current = path;
      setMenu(false);
      main.current?.focus();
      window.scrollTo(0, 0);
    }
  }, [path]);

  const wasLost = useRef(false);
  useEffect(() => {
    if (state.kind === "waiting") {
      if (!wasLost.current) void queryClient.invalidateQueries({ queryKey: ["whoami"] }); // the key may be good no more
      wasLost.current = true;
    }
    if (state.kind === "live") {
      refreshAll(); // what changed while nobody listened is not known, nor what did before the first word
      if (wasLost.current) toast("Connected again", "good");
      wasLost.current = false;
    }
  }, [state]);

  useEffect(() => {
    const reconnect = (): void => liveSocket(eventsUrl()).retry();
    window.addEventListener("toolscore:key", reconnect);
    return () => window.removeEventListener("toolscore:key", reconnect);
  }, []);

  return (
    <div className="shell">
      <a className="skip" href="#main">
        Skip to the page
      </a>
      <header className="top">
        <Button look="quiet" className="menu-button" aria-expanded={menu} aria-controls="nav" aria-label="Menu" onClick={() => setMenu(!menu)}>
          <Menu size={20} aria-hidden />
        </Button>
        <Link to="/" className="brand">
          <Boxes size={20} aria-hidden /> ToolScore
        </Link>
        <Connection state={state} retry={retry} />
        <div className="top-end">
          <Button look="quiet" onClick={() => setAskKey(true)} title={`You are ${me.principal}${me.admin ? ", with the scope admin" : ""}`}>
            <KeyRound size={16} aria-hidden /> <span className="wide-only">{oneLine(me.principal, 24)}</span>
            <span className="visually-hidden">: use another key</span>
          </Button>
          <ThemeButton />
        </div>
      </header>
      <nav id="nav" aria-label="Pages" className={menu ? "open" : ""}>
        <ul>
          {PAGES.filter((page) => me.admin || !page.admin).map((page) => (
            <li key={page.to}>
              <Link to={page.to} activeOptions={{ exact: page.to === "/" }} activeProps={{ "aria-current": "page" }}>
                <page.icon size={17} aria-hidden /> {page.title}
              </Link>
            </li>
          ))}
        </ul>
        <p className="dim nav-foot">
          {me.version} · <a href="/docs">API</a>
        </p>
      </nav>
      <main id="main" ref={main} tabIndex={-1}>
        <Outlet />
      </main>
      <Dialog title="Use another key" open={askKey} onClose={() => setAskKey(false)}>
        <KeyForm onDone={() => setAskKey(false)} />
      </Dialog>
      <Toasts />
    </div>
  );
}

function Connection({ state, retry }: { state: LiveState; retry: () => void }) {
  const now = useNow();
  if (state.kind === "waiting") {
    const seconds = Math.max(0, Math.ceil((state.retryAt - now) / 1000));
    return (
      <div className="connection lost" role="status">
        <span className="dot" aria-hidden />
        Connection lost, retrying in {seconds} s
        <Button look="quiet" onClick={retry}>
          Now
        </Button>
      </div>
    );
  }
  return (
    <div className={`connection ${state.kind}`} role="status">
      <span className="dot" aria-hidden />
      {state.kind === "live" ? "Live" : "Connecting"}
    </div>
  );
}

function ThemeButton() {
  const [theme, choose] = useState<Theme>(storedTheme);
  const next: Theme = theme === "system" ? "dark" : theme === "dark" ? "light" : "system";
  const Icon = { system: SunMoon, dark: Moon, light: Sun }[theme];
  return (
    <Button
      look="quiet"
      aria-label={`Theme: ${theme}. Change to ${next}`}
      title={`Theme: ${theme}`}
      onClick={() => {
        setTheme(next);
        choose(next);
      }}
    >
      <Icon size={17} aria-hidden />
    </Button>
  );
}
