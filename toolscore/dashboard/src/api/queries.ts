import { QueryClient, keepPreviousData, queryOptions, infiniteQueryOptions, type InvalidateOptions, type InvalidateQueryFilters } from "@tanstack/react-query";
import { ApiError, api, data, type Tool } from "./client";

const TRIES = 2;
const PASSING_MS = 5000;

/** TanStack's, which takes an answer for new whose question was on its way when it was called old, if that was the first.
 * That answer may be of before: it is shown, and asked for again. */
class Client extends QueryClient {
  override async invalidateQueries(filters?: InvalidateQueryFilters, options?: InvalidateOptions): Promise<void> {
    const first = new Set(this.getQueryCache().findAll({ ...filters, fetchStatus: "fetching" }).filter((one) => one.state.data === undefined));
    await super.invalidateQueries(filters, options);
    if (first.size > 0) await super.invalidateQueries({ predicate: (one) => first.has(one) }, options);
  }
}

/** What the page remembers of the gateway. Events say when it is another; only what cannot stay as it is, is asked for
 * again by a clock. */
export const queryClient = new Client({
  defaultOptions: {
    queries: {
      staleTime: Infinity,
      gcTime: 60_000,
      refetchOnWindowFocus: false,
      refetchOnReconnect: false,
      retry: (count, error) => count < TRIES && error instanceof ApiError && (error.status === 0 || error.status >= 500),
    },
  },
});

const PAGE = 200;

export const whoami = () =>
  queryOptions({ queryKey: ["whoami"], queryFn: ({ signal }) => data(api.GET("/api/v1/whoami", { signal })), retry: false });

export const stats = () =>
  queryOptions({ queryKey: ["stats"], queryFn: ({ signal }) => data(api.GET("/api/v1/stats", { signal })) });

export const health = () =>
  queryOptions({ queryKey: ["health"], queryFn: ({ signal }) => data(api.GET("/health", { signal })) });

export const servers = () =>
  queryOptions({
    queryKey: ["servers"],
    queryFn: ({ signal }) => data(api.GET("/api/v1/servers", { params: { query: { memory: true } }, signal })),
    refetchInterval: ({ state: { error, data } }) =>
      error !== null || data?.servers.some((one) => one.state === "starting") ? PASSING_MS : false,
  });

export const server = (id: string) =>
  queryOptions({
    queryKey: ["servers", id],
    queryFn: ({ signal }) => data(api.GET("/api/v1/servers/{server_id}", { params: { path: { server_id: id } }, signal })),
    refetchInterval: ({ state: { data } }) => (data?.state === "starting" ? PASSING_MS : false),
  });

export interface ToolFilter {
  server?: string | undefined;
  text?: string | undefined;
  disabled?: boolean | undefined;
}

export const tools = (filter: ToolFilter) =>
  infiniteQueryOptions({
    queryKey: ["tools", filter],
    queryFn: ({ pageParam, signal }) =>
      data(
        api.GET("/api/v1/tools", {
          params: {
            query: {
              limit: PAGE,
              ...(filter.server ? { server_id: filter.server } : {}),
              ...(filter.text ? { q: filter.text } : {}),
              ...(filter.disabled ? { disabled: true } : {}),
              ...(pageParam === null ? {} : { cursor: pageParam }),
            },
          },
          signal,
        }),
      ),
    initialPageParam: null as string | null,
    getNextPageParam: (page) => page.next_cursor,
    placeholderData: keepPreviousData,
  });

/** All tools of a server, by id. `off`: those that are disabled, too; it takes an admin. */
export const toolsOf = (server: string, off: boolean) =>
  queryOptions({
    queryKey: ["tools", "of", server, off],
    queryFn: async ({ signal }) => {
      const all = new Map<string, Tool>();
      for (const disabled of off ? [false, true] : [false]) {
        let cursor: string | null = null;
        do {
          const page: { tools: Tool[]; next_cursor: string | null } = await data(
            api.GET("/api/v1/tools", {
              params: { query: { server_id: server, limit: PAGE, disabled, ...(cursor === null ? {} : { cursor }) } },
              signal,
            }),
          );
          for (const tool of page.tools) all.set(tool.tool_id, tool);
          cursor = page.next_cursor;
        } while (cursor !== null);
      }
      return [...all.values()].sort((one, two) => (one.tool_id < two.tool_id ? -1 : 1));
    },
  });

export const foundTools = (query: string) =>
  queryOptions({
    queryKey: ["tools", "search", query],
    queryFn: ({ signal }) => data(api.POST("/api/v1/tools/search", { body: { query, limit: 50 }, signal })),
    placeholderData: keepPreviousData,
  });

export const tool = (id: string) =>
  queryOptions({
    queryKey: ["tools", "one", id],
    queryFn: ({ signal }) => data(api.GET("/api/v1/tools/{tool_id}", { params: { path: { tool_id: id } }, signal })),
  });

export const pins = (quarantined: boolean) =>
  queryOptions({
    queryKey: ["pins", quarantined],
    queryFn: ({ signal }) => data(api.GET("/api/v1/pins", { params: { query: { quarantined } }, signal })),
  });

export const pin = (id: string) =>
  queryOptions({
    queryKey: ["pins", "one", id],
    queryFn: ({ signal }) => data(api.GET("/api/v1/pins/{tool_id}", { params: { path: { tool_id: id } }, signal })),
  });

export interface CallFilter {
  tool_id?: string | undefined;
  server_id?: string | undefined;
  principal?: string | undefined;
  outcome?: string | undefined;
  request_id?: string | undefined;
  parent?: string | undefined;
  since?: string | undefined;
  until?: string | undefined;
}

export function given(filter: CallFilter): Record<string, string> {
  return Object.fromEntries(Object.entries(filter).filter((pair): pair is [string, string] => Boolean(pair[1])));
}

export const calls = (filter: CallFilter, limit = PAGE) =>
  infiniteQueryOptions({
    queryKey: ["calls", filter, limit],
    queryFn: ({ pageParam, signal }) =>
      data(
        api.GET("/api/v1/calls", {
          params: { query: { ...given(filter), limit, ...(pageParam === null ? {} : { cursor: pageParam }) } },
          signal,
        }),
      ),
    initialPageParam: null as string | null,
    getNextPageParam: (page) => page.next_cursor,
    placeholderData: keepPreviousData,
  });

export const call = (id: string) =>
  queryOptions({
    queryKey: ["call", id],
    queryFn: ({ signal }) => data(api.GET("/api/v1/calls/{call_id}", { params: { path: { call_id: id } }, signal })),
  });

export const errors = () =>
  queryOptions({ queryKey: ["errors"], queryFn: ({ signal }) => data(api.GET("/api/v1/errors", { params: { query: { limit: 200 } }, signal })) });

const PAST_EVENTS = 1000;

/** The log from a number on; `undefined`: its newest events. */
export const pastEvents = (since: number | undefined) =>
  queryOptions({
    queryKey: ["events", since],
    queryFn: ({ signal }) =>
      data(api.GET("/api/v1/events", { params: { query: { limit: PAST_EVENTS, ...(since === undefined ? {} : { since }) } }, signal })),
  });

export const approvals = () =>
  queryOptions({ queryKey: ["approvals"], queryFn: ({ signal }) => data(api.GET("/api/v1/catalog/approvals", { signal })) });

export const installed = () =>
  queryOptions({ queryKey: ["catalog", "installed"], queryFn: ({ signal }) => data(api.GET("/api/v1/catalog/installed", { signal })) });

export const candidates = (query: string) =>
  queryOptions({
    queryKey: ["catalog", "search", query],
    queryFn: ({ signal }) => data(api.GET("/api/v1/catalog/search", { params: { query: { q: query, limit: 10 } }, signal })),
  });

export const keys = () =>
  queryOptions({ queryKey: ["keys"], queryFn: ({ signal }) => data(api.GET("/api/v1/keys", { signal })) });

export const settings = () =>
  queryOptions({ queryKey: ["settings"], queryFn: ({ signal }) => data(api.GET("/api/v1/settings", { signal })) });
