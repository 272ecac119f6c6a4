import { X } from "lucide-react";
import { useId, useLayoutEffect, useRef, useState, type ReactNode } from "react";
import { Button } from "./basics";

/** A dialog over the page, the browser's own: it keeps the focus, and Escape closes it. */
export function Dialog({
  title,
  lead,
  open,
  onClose,
  wide = false,
  children,
}: {
  title: string;
  lead?: ReactNode;
  open: boolean;
  onClose: () => void;
  wide?: boolean;
  children: ReactNode;
}) {
  const place = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const dialog = place.current;
    if (!open || dialog === null) return;
    const before = document.activeElement;
    dialog.showModal();
    return () => {
      dialog.close();
      if (before instanceof HTMLElement) before.focus();
    };
  }, [open]);
  if (!open) return null;
  return (
    <dialog
      ref={place}
      className={wide ? "wide" : ""}
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
      onClick={(event) => {
        if (event.target === event.currentTarget) onClose();
      }}
    >
      <div className="dialog-body">
        <div className="card-head">
          <h2 id={id}>{title}</h2>
          <Button look="quiet" aria-label="Close" onClick={onClose}>
            <X size={18} aria-hidden />
          </Button>
        </div>
        {lead !== undefined && <p className="lead">{lead}</p>}
        {children}
      </div>
    </dialog>
  );
}

/** A button that asks before it does what cannot be taken back. */
export function Confirmed({
  label,
  question,
  does,
  onConfirm,
  busy = false,
}: {
  label: ReactNode;
  question: string;
  does: string;
  onConfirm: () => void;
  busy?: boolean;
}) {
  const [open, setOpen] = useState(false);
  return (
    <>
      <Button look="danger" busy={busy} onClick={() => setOpen(true)}>
        {label}
      </Button>
      <Dialog title={question} open={open} onClose={() => setOpen(false)}>
        <div className="actions end">
          <Button onClick={() => setOpen(false)}>Keep it</Button>
          <Button
            look="danger"
            onClick={() => {
              setOpen(false);
              onConfirm();
            }}
          >
            {does}
          </Button>
        </div>
      </Dialog>
    </>
  );
}
