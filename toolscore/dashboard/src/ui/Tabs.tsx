import * as Radix from "@radix-ui/react-tabs";
import { useState, type ReactNode } from "react";

export interface Tab {
  id: string;
  title: ReactNode;
  content: () => ReactNode;
}

/** Tabs; only the open one's content is made. `value` and `onChange` where the choice stands in the address bar. */
export function Tabs({
  label,
  tabs,
  value,
  onChange,
}: {
  label: string;
  tabs: Tab[];
  value?: string | undefined;
  onChange?: (id: string) => void;
}) {
  const [own, setOwn] = useState(tabs[0]?.id ?? "");
  const open = value ?? own;
  return (
    <Radix.Root value={open} onValueChange={onChange ?? setOwn} className="tabs">
      <Radix.List className="tab-list" aria-label={label}>
        {tabs.map((tab) => (
          <Radix.Trigger key={tab.id} value={tab.id} className="tab">
            {tab.title}
          </Radix.Trigger>
        ))}
      </Radix.List>
      {tabs.map((tab) => (
        <Radix.Content key={tab.id} value={tab.id} className="tab-content">
          {tab.id === open && tab.content()}
        </Radix.Content>
      ))}
    </Radix.Root>
  );
}
