import { Link, createRootRoute, createRoute, createRouter, lazyRouteComponent, redirect } from "@tanstack/react-router";
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
  errorComponent: ({ error, reset }) => (
    <Page title="This page failed">
      <Failure error={error} retry={reset} />
    </Page>
  ),
});

const text = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : typeof value === "number" ? String(value) : undefined);
const flag = (value: unknown): true | undefined => (value === true || value === "true" ? true : undefined);

const overview = createRoute({
  getParentRoute: () => root,
  path: "/",
  component: lazyRouteComponent(() => import("../features/overview/OverviewPage"), "OverviewPage"),
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
  component: lazyRouteComponent(() => import("../features/tools/ToolsPage"), "ToolsPage"),
});
const tool = createRoute({
  getParentRoute: () => root,
  path: "/ui/tools/$toolId",
  validateSearch: (search): { tab?: string | undefined } => ({ tab: text(search["tab"]) }),
  component: lazyRouteComponent(() => import("../features/tools/ToolPage"), "ToolPage"),
});
const servers = createRoute({
  getParentRoute: () => root,
  path: "/ui/servers",
  validateSearch: (search): { add?: true | undefined } => ({ add: flag(search["add"]) }),
  component: lazyRouteComponent(() => import("../features/servers/ServersPage"), "ServersPage"),
});
const server = createRoute({
  getParentRoute: () => root,
  path: "/ui/servers/$serverId",
  component: lazyRouteComponent(() => import("../features/servers/ServerPage"), "ServerPage"),
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
  component: lazyRouteComponent(() => import("../features/calls/CallsPage"), "CallsPage"),
});
const call = createRoute({
  getParentRoute: () => root,
  path: "/ui/calls/$callId",
  component: lazyRouteComponent(() => import("../features/calls/CallPage"), "CallPage"),
});
const discover = createRoute({
  getParentRoute: () => root,
  path: "/ui/discover",
  validateSearch: (search): { task?: string | undefined } => ({ task: text(search["task"]) }),
  component: lazyRouteComponent(() => import("../features/discover/DiscoverPage"), "DiscoverPage"),
});
const errors = createRoute({
  getParentRoute: () => root,
  path: "/ui/errors",
  component: lazyRouteComponent(() => import("../features/errors/ErrorsPage"), "ErrorsPage"),
});
const python = createRoute({
  getParentRoute: () => root,
  path: "/ui/python",
  component: lazyRouteComponent(() => import("../features/python/PythonPage"), "PythonPage"),
});
const events = createRoute({
  getParentRoute: () => root,
  path: "/ui/events",
  validateSearch: (search): { type?: string | undefined; since?: string | undefined } => ({ type: text(search["type"]), since: text(search["since"]) }),
  component: lazyRouteComponent(() => import("../features/events/EventsPage"), "EventsPage"),
});
const access = createRoute({
  getParentRoute: () => root,
  path: "/ui/access",
  component: lazyRouteComponent(() => import("../features/access/AccessPage"), "AccessPage"),
});
const settings = createRoute({
  getParentRoute: () => root,
  path: "/ui/settings",
  component: lazyRouteComponent(() => import("../features/settings/SettingsPage"), "SettingsPage"),
});
const health = createRoute({
  getParentRoute: () => root,
  path: "/ui/health",
  component: lazyRouteComponent(() => import("../features/health/HealthPage"), "HealthPage"),
});

/** Where everything is. What a page shows by choice stands in its address. */
export const router = createRouter({
  routeTree: root.addChildren([
    overview, ui, tools, tool, servers, server, calls, call, discover, errors, python, events, access, settings, health,
  ]), // prettier-ignore
  defaultPreload: "intent",
  scrollRestoration: false,
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
