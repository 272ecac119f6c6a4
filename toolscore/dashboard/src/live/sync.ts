import type { QueryKey } from "@tanstack/react-query";
import { queryClient } from "../api/queries";
import type { LiveEvent } from "./socket";

const PAUSE_MS = 1000;

const CHANGES: Record<string, string[]> = {
  tool_installed: ["tools"],
  tool_updated: ["tools", "pins"],
  tool_removed: ["tools"],
  tool_quarantined: ["tools", "pins"],
  tool_released: ["tools", "pins"],
  tool_disabled: ["tools"],
  tool_enabled: ["tools"],
  server_up: ["servers", "tools", "health", "catalog"],
  server_down: ["servers", "tools", "health", "catalog"],
  server_idle: ["servers", "tools", "health", "catalog"],
  circuit_changed: ["servers", "tools"],
  install_failed: ["catalog"],
  approval_needed: ["approvals"],
  approval_ended: ["approvals"],
  settings_applied: ["settings", "servers", "health"],
  settings_rejected: ["settings", "health"],
};

const due = new Map<string, ReturnType<typeof setTimeout> | null>();

/** Asks again for what the events say is another now, each thing once a second at most. */
export function applyEvents(events: readonly LiveEvent[]): void {
  const roots = new Set(events.flatMap((event) => CHANGES[event.type] ?? []));
  if (roots.has("catalog")) roots.add("approvals");
  for (const root of roots) refreshSoon([root]);
}

/** Asks for everything again: what happened meanwhile is not known. */
export function refreshAll(): void {
  void queryClient.invalidateQueries();
}

function refreshSoon(key: QueryKey): void {
  const name = JSON.stringify(key);
  if (due.has(name)) return;
  due.set(
    name,
    setTimeout(() => {
      due.delete(name);
      void queryClient.invalidateQueries({ queryKey: key });
    }, PAUSE_MS / 4),
  );
}
