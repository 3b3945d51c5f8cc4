// The console: log in, then the demo, one's devices, and one's session.
import "./style/base.css";
import "./style/parts.css";
import "./style/demo.css";

import { render } from "preact";
import { App } from "./views/app";

render(<App />, document.getElementById("app") as HTMLElement);
