import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { createRoot } from "react-dom/client";
import { queryClient } from "./api/queries";
import { router } from "./app/router";
import { Session } from "./app/session";
import { setTheme, storedTheme } from "./app/theme";
import "./styles.css";

setTheme(storedTheme());
const place = document.getElementById("root");
if (place !== null)
  createRoot(place).render(
    <QueryClientProvider client={queryClient}>
      <Session>
        <RouterProvider router={router} />
      </Session>
    </QueryClientProvider>,
  );
