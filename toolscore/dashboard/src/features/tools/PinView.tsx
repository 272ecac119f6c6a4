import { useMutation, useQuery } from "@tanstack/react-query";
import { api, whole } from "../../api/client";
import { pin as pinQuery, queryClient } from "../../api/queries";
import { useMe } from "../../app/session";
import { Ago, Asked, Badge, Button, Card, Facts, toast } from "../../ui/basics";
import { Confirmed } from "../../ui/Dialog";
import { DiffView } from "../../ui/Diff";
import { JsonTree } from "../../ui/JsonTree";
import { oneLine } from "../../ui/text";

/** What a tool is held to; of a change that waits, what it changes. */
export function PinView({ toolId }: { toolId: string }) {
  const me = useMe();
  const asked = useQuery(pinQuery(toolId));
  const done = {
    onError: (error: Error) => toast(error.message, "bad"),
    onSettled: () => Promise.all([queryClient.invalidateQueries({ queryKey: ["pins"] }), queryClient.invalidateQueries({ queryKey: ["tools"] })]),
  };
  const approve = useMutation({
    mutationFn: (hash: string) => whole(api.POST("/api/v1/pins/{tool_id}/approve", { params: { path: { tool_id: toolId } }, body: { definition_hash: hash } })),
    onSuccess: () => toast("Approved: this is the definition now", "good"),
    ...done,
  });
  const reject = useMutation({
    mutationFn: () => whole(api.POST("/api/v1/tools/{tool_id}/disable", { params: { path: { tool_id: toolId } } })),
    onSuccess: () => toast("Rejected: the tool is disabled, nobody sees it any more", "good"),
    ...done,
  });
  return (
    <Asked query={asked}>
      {(pin) =>
        pin.quarantined ? (
          <Card title="Its server says something else now">
            <p>
              <Badge tone={pin.change === "compatible" ? "info" : "warn"}>{pin.change ?? "changed"}</Badge> Calls are refused until somebody approves the
              change, or the server takes it back. Lists show the definition from before.
            </p>
            <ul>
              {(pin.reasons ?? []).map((reason) => (
                <li key={reason}>{oneLine(reason, 400)}</li>
              ))}
            </ul>
            <DiffView diff={pin.diff ?? ""} />
            <Facts of={[["changed", (pin.changed ?? []).join(", ")], ["since", <Ago key="since" at={pin.since} />]]} />
            {me.admin && pin.held_hash !== null && (
              <div className="actions">
                <Button look="primary" busy={approve.isPending} onClick={() => approve.mutate(pin.held_hash as string)}>
                  Approve
                </Button>
                <Confirmed label="Reject" busy={reject.isPending} question="Disable this tool? Nobody sees it until you enable it." does="Disable it" onConfirm={() => reject.mutate()} />
              </div>
            )}
          </Card>
        ) : (
          <Card title="Held to this definition">
            <Facts
              of={[
                ["since", <Ago key="since" at={pin.pinned_at} />],
                ["by", pin.pinned_by ?? "nobody"],
                ["hash", <code key="hash">{pin.definition_hash.slice(0, 16)}</code>],
              ]}
            />
            <JsonTree value={pin.definition} label="pinned definition" />
          </Card>
        )
      }
    </Asked>
  );
}
