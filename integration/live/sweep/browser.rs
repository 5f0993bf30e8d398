//! A Chromium without a window, told over its debugging pipe: JSON objects, with a zero byte behind each.

use serde_json::{Value, json};
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::spawn,
    time::Duration,
};

/// A page is there in a fraction of that, and on a busy host later.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a page looks like: every figure that is shown, and what does not fit. Tables may be wider than the page where
/// they can be moved sideways by themselves. A telephone makes its window wider for a page that does not fit.
const LOOK: &str = "(() => {
    const shown = element => element.getBoundingClientRect().width > 0;
    const light = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).map(part => part / 255)
            .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const contrast = text => {
        const ink = light(text);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    };
    const plots = [...document.querySelectorAll('svg')].filter(shown);
    const within = (text, plot) => {
        const [inner, outer] = [text.getBoundingClientRect(), plot.getBoundingClientRect()];
        return inner.left >= outer.left - 1 && inner.right <= outer.right + 1
            && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
    };
    const texts = plots.flatMap(plot => [...plot.querySelectorAll('text')].map(text => [text, plot]));
    const bodies = [...document.body.querySelectorAll('h1, h2, p, figure, svg, .rows')].filter(shown);
    return {
        width: innerWidth,
        page: document.documentElement.scrollWidth,
        plots: plots.length,
        empty: plots.filter(plot => plot.querySelectorAll('path, line, rect, circle, polyline, polygon').length < 3).length,
        outside: texts.filter(([text, plot]) => !within(text, plot)).map(([text]) => text.textContent),
        wide: bodies.filter(body => body.getBoundingClientRect().right > WIDTH + 1).map(body => body.tagName),
        small: Math.min(...texts.map(([text]) => text.getBoundingClientRect().height)),
        paper,
        contrast: contrast(getComputedStyle(document.body).color),
        faint: texts.filter(([text]) => contrast(getComputedStyle(text).fill) < 3).map(([text]) => text.textContent),
    };
})()";

pub(super) struct Browser {
    child: Child,
    commands: File,
    answers: Receiver<Value>,
    number: u64,
    /// The sockets' and the profile's folder, below /tmp: the browser sees no other one.
    folder: tempfile::TempDir,
}

impl Browser {
    pub(super) fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/chromium/bin/chromium");
        assert!(program.exists(), "scripts/chromium has not unpacked it");
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let [to, from] = ["to", "from"].map(|name| folder.path().join(name));
        assert!(Command::new("mkfifo").args([&to, &from]).status().unwrap().success());
        let child = Command::new("sh")
            .args([
                "-c",
                "exec \"$1\" --remote-debugging-pipe --disable-gpu \"--user-data-dir=$4\" 3<\"$2\" 4>\"$3\"",
                "sh",
            ])
            .args([&program, &to, &from, &folder.path().join("profile")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // each side waits for the other
        let commands = OpenOptions::new().write(true).open(&to).unwrap();
        let mut heard = BufReader::new(File::open(&from).unwrap());
        let (tell, answers) = channel();
        spawn(move || {
            let mut object = Vec::new();
            while heard.read_until(0, &mut object).is_ok_and(|length| length > 0) {
                object.pop();
                // a test that has ended hears nothing more
                if tell.send(serde_json::from_slice(&object).unwrap_or_default()).is_err() {
                    return;
                }
                object.clear();
            }
        });
        Self { child, commands, answers, number: 0, folder }
    }

    /// Sends a command to a page, or to the browser, and returns its result.
    fn ask(&mut self, page: Option<&str>, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut object = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(page) = page {
            object["sessionId"] = page.into();
        }
        self.commands.write_all(format!("{object}\0").as_bytes()).unwrap();
        let answer = self.until(|object| object["id"] == self.number);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn until(&self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let object = self.answers.recv_timeout(PATIENCE).expect("the browser answers");
            if is_it(&object) {
                return object;
            }
        }
    }

    /// Opens a file in a window of this width, in the dark or not, and looks at it.
    pub(super) fn look(&mut self, file: &Path, width: u32, dark: bool) -> Value {
        let seen: PathBuf = self.folder.path().join("page.html");
        std::fs::copy(file, &seen).unwrap();
        let target = self.ask(None, "Target.createTarget", &json!({ "url": "about:blank" }));
        let attached =
            self.ask(None, "Target.attachToTarget", &json!({ "targetId": target["targetId"], "flatten": true }));
        let page = attached["sessionId"].as_str().unwrap().to_owned();
        let page = Some(&*page);
        let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700 });
        self.ask(page, "Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!([{ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } }]);
        self.ask(page, "Emulation.setEmulatedMedia", &json!({ "features": scheme }));
        self.ask(page, "Page.enable", &json!({}));
        self.ask(page, "Page.navigate", &json!({ "url": format!("file://{}", seen.display()) }));
        self.until(|object| object["method"] == "Page.loadEventFired");
        let look = LOOK.replace("WIDTH", &width.to_string());
        let looked = self.ask(page, "Runtime.evaluate", &json!({ "expression": look, "returnByValue": true }));
        self.ask(None, "Target.closeTarget", &json!({ "targetId": target["targetId"] }));
        looked["result"]["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The process that was started is the browser, and its own end with it.
        drop((self.child.kill(), self.child.wait()));
    }
}

#[test]
fn what_does_not_fit_on_a_page_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let text = "<meta name=viewport content='width=device-width'><body style='background:rgb(255,255,255);color:rgb(0,0,0)'>\
        <p style='width:500px'>wide</p><svg width=100 height=50><text x=90 y=20 fill='rgb(230,230,230)'>too long</text></svg>";
    std::fs::write(&page, text).unwrap();
    let seen = Browser::start().look(&page, 390, false);
    assert!(seen["page"].as_u64() > Some(390), "{seen:#}");
    for (what, found) in [("wide", "P"), ("outside", "too long"), ("faint", "too long")] {
        assert_eq!(seen[what], json!([found]), "{what}: {seen:#}");
    }
    assert_eq!((&seen["plots"], &seen["empty"]), (&1.into(), &1.into()), "{seen:#}");
}
