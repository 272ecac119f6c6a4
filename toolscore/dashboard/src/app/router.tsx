import { Link, createRootRoute, createRoute, createRouter, lazyRouteComponent, redirect } from "@tanstack/react-router";
import { ApiError } from "../api/client";
import type { CallFilter } from "../api/queries";
import { Empty, Failure, Page } from "../ui/basics";
import { Shell } from "./Shell";

const root = createRootRoute({
  component: Shell,
  notFoundComponent: () => (
    <Page title="Nothing here">
      <Empty title="There is no page at this address">
        <Link to="/">To the overview</Link>
      </Empty>
    </Page>
  ),
});

/**
 * A page, whose code comes when it is looked at first. Where it cannot be had (the gateway is away, or is another release
 * by now) that is said in its place: the router itself would load everything anew, and find nothing.
 */
function page<T extends Record<string, unknown>, K extends keyof T & string>(load: () => Promise<T>, name: K) {
  return lazyRouteComponent(
    () =>
      load().catch(() => {
        throw new ApiError(0, { code: "unreachable", message: "the gateway does not answer, and this page is not here yet" });
      }),
    name,
  );
}

const text = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : typeof value === "number" ? String(value) : undefined);
const whole = (value: unknown): number | undefined => (Number.isSafeInteger(Number(value)) && Number(value) > 0 ? Number(value) : undefined);
const flag = (value: unknown): true | undefined => (value === true || value === "true" ? true : undefined);

const overview = createRoute({
  getParentRoute: () => root,
  path: "/",
  component: page(() => import("../features/overview/OverviewPage"), "OverviewPage"),
});
const ui = createRoute({
  getParentRoute: () => root,
  path: "/ui",
  beforeLoad: () => {
    throw redirect({ to: "/" });
  },
});
export interface ToolSearch {
  q?: string | undefined;
  server?: string | undefined;
  disabled?: true | undefined;
}
const tools = createRoute({
  getParentRoute: () => root,
  path: "/ui/tools",
  validateSearch: (search): ToolSearch => ({ q: text(search["q"]), server: text(search["server"]), disabled: flag(search["disabled"]) }),
  component: page(() => import("../features/tools/ToolsPage"), "ToolsPage"),
});
const tool = createRoute({
  getParentRoute: () => root,
  path: "/ui/tools/$toolId",
  validateSearch: (search): { tab?: string | undefined } => ({ tab: text(search["tab"]) }),
  component: page(() => import("../features/tools/ToolPage"), "ToolPage"),
});
const servers = createRoute({
  getParentRoute: () => root,
  path: "/ui/servers",
  validateSearch: (search): { add?: true | undefined } => ({ add: flag(search["add"]) }),
  component: page(() => import("../features/servers/ServersPage"), "ServersPage"),
});
const server = createRoute({
  getParentRoute: () => root,
  path: "/ui/servers/$serverId",
  component: page(() => import("../features/servers/ServerPage"), "ServerPage"),
});
const calls = createRoute({
  getParentRoute: () => root,
  path: "/ui/calls",
  validateSearch: (search): CallFilter => ({
    tool_id: text(search["tool_id"]),
    server_id: text(search["server_id"]),
    principal: text(search["principal"]),
    outcome: text(search["outcome"]),
    request_id: text(search["request_id"]),
    parent: text(search["parent"]),
    since: text(search["since"]),
    until: text(search["until"]),
  }),
  component: page(() => import("../features/calls/CallsPage"), "CallsPage"),
});
const call = createRoute({
  getParentRoute: () => root,
  path: "/ui/calls/$callId",
  component: page(() => import("../features/calls/CallPage"), "CallPage"),
});
const discover = createRoute({
  getParentRoute: () => root,
  path: "/ui/discover",
  validateSearch: (search): { task?: string | undefined } => ({ task: text(search["task"]) }),
  component: page(() => import("../features/discover/DiscoverPage"), "DiscoverPage"),
});
const errors = createRoute({
  getParentRoute: () => root,
  path: "/ui/errors",
  component: page(() => import("../features/errors/ErrorsPage"), "ErrorsPage"),
});
const python = createRoute({
  getParentRoute: () => root,
  path: "/ui/python",
  component: page(() => import("../features/python/PythonPage"), "PythonPage"),
});
const events = createRoute({
  getParentRoute: () => root,
  path: "/ui/events",
  validateSearch: (search): { type?: string | undefined; since?: number | undefined } => ({ type: text(search["type"]), since: whole(search["since"]) }),
  component: page(() => import("../features/events/EventsPage"), "EventsPage"),
});
const access = createRoute({
  getParentRoute: () => root,
  path: "/ui/access",
  component: page(() => import("../features/access/AccessPage"), "AccessPage"),
});
const settings = createRoute({
  getParentRoute: () => root,
  path: "/ui/settings",
  component: page(() => import("../features/settings/SettingsPage"), "SettingsPage"),
});
const health = createRoute({
  getParentRoute: () => root,
  path: "/ui/health",
  component: page(() => import("../features/health/HealthPage"), "HealthPage"),
});

/** Where everything is. What a page shows by choice stands in its address. */
export const router = createRouter({
  routeTree: root.addChildren([
    overview, ui, tools, tool, servers, server, calls, call, discover, errors, python, events, access, settings, health,
  ]), // prettier-ignore
  defaultErrorComponent: ({ error, reset }) => (
    <Page title="This page failed">
      <Failure error={error} retry={reset} />
    </Page>
  ),
  defaultPreload: "intent",
  scrollRestoration: false,
});

/** Has the code of all pages come while nothing else is to be done, so that they are there when the gateway is not. */
export function preloadPages(): void {
  for (const route of Object.values(router.routesById)) void (route.options.component as { preload?: () => Promise<void> } | undefined)?.preload?.().catch(() => undefined);
}

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
