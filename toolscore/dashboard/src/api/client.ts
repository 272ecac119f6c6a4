import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];
export type Tool = Schemas["Tool"];
export type FoundTool = Schemas["FoundTool"];
export type FullTool = Schemas["FullTool"];
export type Server = Schemas["Server"];
export type FullServer = Schemas["FullServer"];
export type Call = Schemas["CallShape"];
export type FullCall = Schemas["FullCall"];
export type Stats = Schemas["Stats"];
export type Candidate = Schemas["Candidate"];
export type Plan = Schemas["PlanShown"];
export type Pin = Schemas["Pin"];

/** A failure as the gateway words it; `status` is 0 where nothing answered. */
export class ApiError extends Error {
  readonly code: string;
  readonly status: number;
  readonly suggestion: string | null;
  readonly details: unknown;

  constructor(status: number, body: { code?: string; message?: string; suggestion?: string | null; details?: unknown }) {
    super(body.message ?? `the gateway answered with HTTP status ${status}`);
    this.code = body.code ?? "unknown";
    this.status = status;
    this.suggestion = body.suggestion ?? null;
    this.details = body.details;
  }
}

const STORED = "toolscore.key";
let key: string | null = read();
const onRefusal = new Set<() => void>();

function read(): string | null {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null; // storage is off in this browser
  }
}

/** The API key that requests show; `null`: none. */
export function currentKey(): string | null {
  return key;
}

/** Shows this key from now on. It stays in memory, or in this tab's storage if `keep` is set. */
export function showKey(next: string | null, keep: boolean): void {
  key = next;
  try {
    if (next !== null && keep) sessionStorage.setItem(STORED, next);
    else sessionStorage.removeItem(STORED);
  } catch {
    // it stays in memory
  }
}

/** Calls back whenever the gateway asks for another key. Returns how to stop that. */
export function whenRefused(listener: () => void): () => void {
  onRefusal.add(listener);
  return () => onRefusal.delete(listener);
}

const withKey: Middleware = {
  onRequest({ request }) {
    if (key !== null) request.headers.set("Authorization", `Bearer ${key}`);
    return request;
  },
};

export const api = createClient<paths>({ baseUrl: window.location.origin });
api.use(withKey);

type Answered<T> = { data?: T; error?: unknown; response: Response };

/** The `data` of an answer's envelope. Throws `ApiError`. */
export async function data<T>(asked: Promise<Answered<{ data: T }>>): Promise<T> {
  return (await whole(asked)).data;
}

/** An answer's whole envelope. Throws `ApiError`. `quiet`: nobody is asked for another key if this one is refused. */
export async function whole<T>(asked: Promise<Answered<T>>, { quiet = false } = {}): Promise<T> {
  let answered: Answered<T>;
  try {
    answered = await asked;
  } catch (cause) {
    if (cause instanceof DOMException && cause.name === "AbortError") throw cause;
    throw new ApiError(0, { code: "unreachable", message: "the gateway does not answer" });
  }
  if (answered.data !== undefined) return answered.data;
  if (answered.response.status === 401 && !quiet) for (const told of onRefusal) told();
  const body = answered.error as { error?: object } | undefined;
  throw new ApiError(answered.response.status, body?.error ?? {});
}
