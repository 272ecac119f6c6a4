import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { createRoot } from "react-dom/client";
import { queryClient, whoami } from "./api/queries";
import { preloadPages, router } from "./app/router";
import { Session } from "./app/session";
import { setTheme, storedTheme } from "./app/theme";
import "./styles.css";

const PRELOAD_MS = 1500;

setTheme(storedTheme());
const place = document.getElementById("root");
// Who one is and the code of the page are asked for at once; what stands in index.html is seen until both are there.
void Promise.allSettled([queryClient.prefetchQuery(whoami()), router.load()]).then(() => {
  if (place === null) return;
  createRoot(place).render(
    <QueryClientProvider client={queryClient}>
      <Session>
        <RouterProvider router={router} />
      </Session>
    </QueryClientProvider>,
  );
  setTimeout(preloadPages, PRELOAD_MS);
});
