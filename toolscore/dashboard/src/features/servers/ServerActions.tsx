import { useMutation } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { api, whole, type Server } from "../../api/client";
import { queryClient } from "../../api/queries";
import { Button, toast } from "../../ui/basics";
import { Confirmed } from "../../ui/Dialog";

type Action = "restart" | "disable" | "enable" | "detach";

/** What an operator does to a server. */
export function ServerActions({ server, short = false }: { server: Server; short?: boolean }) {
  const navigate = useNavigate();
  const params = { params: { path: { server_id: server.server_id } } };
  const act = useMutation({
    mutationFn: (action: Action): Promise<{ message: string }> => {
      if (action === "restart") return whole(api.POST("/api/v1/servers/{server_id}/restart", params));
      if (action === "disable") return whole(api.POST("/api/v1/servers/{server_id}/disable", params));
      if (action === "enable") return whole(api.POST("/api/v1/servers/{server_id}/enable", params));
      return whole(api.DELETE("/api/v1/servers/{server_id}", params));
    },
    onSuccess: (answer, action) => {
      toast(answer.message, "good");
      if (action === "detach" && !short) void navigate({ to: "/ui/servers" });
    },
    onError: (error) => toast(error.message, "bad"),
    onSettled: (_answer, _error, action) => {
      if (action === "detach") queryClient.removeQueries({ queryKey: ["servers", server.server_id] });
      return Promise.all([queryClient.invalidateQueries({ queryKey: ["servers"] }), queryClient.invalidateQueries({ queryKey: ["tools"] })]);
    },
  });
  const busy = (action: Action): boolean => act.isPending && act.variables === action;
  const detach = (
    <Confirmed
      label="Detach"
      question={`Detach ${server.server_id}? Its tools go, and what is known of them.`}
      does="Detach it"
      busy={busy("detach")}
      onConfirm={() => act.mutate("detach")}
    />
  );
  if (server.disabled)
    return (
      <span className="actions">
        <Button busy={busy("enable")} onClick={() => act.mutate("enable")}>
          Enable
        </Button>
        {!short && detach}
      </span>
    );
  if (!server.kind) return <span className="dim">mend its entry</span>;
  return (
    <span className="actions">
      <Button busy={busy("restart")} onClick={() => act.mutate("restart")}>
        Restart
      </Button>
      {!short && (
        <>
          <Button busy={busy("disable")} onClick={() => act.mutate("disable")}>
            Disable
          </Button>
          {detach}
        </>
      )}
    </span>
  );
}
