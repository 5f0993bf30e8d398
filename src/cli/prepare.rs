//! `qferry prepare`.

use super::{
    args,
    exit::{failed, misused},
    flags, render, shell,
    signals::Signals,
};
use crate::{
    migration::Running,
    prepare::{Preparation, PreparationAction, PreparationOutcome, PreparationStep, Prepared, StepState},
    quantity::Bytes,
};
use std::{
    io::{self, Write},
    process::ExitCode,
    thread,
};

pub(super) async fn run(options: Box<args::Prepare>) -> ExitCode {
    let wanted = Preparation::new(options.source.clone()).settings(options.settings());
    let started = match options.apply {
        true => wanted.start(),
        false => wanted.plan(),
    };
    match started {
        Ok(running) => follow(running, options.apply, options.json).await,
        Err(invalid) => misused(&flags::worded(&invalid), options.json),
    }
}

async fn follow(mut running: Running<Prepared>, apply: bool, json: bool) -> ExitCode {
    let Some(signals) = Signals::watch() else { return failed("cannot watch for signals", json) };
    let began = std::time::Instant::now();
    let events = running.events();
    // a plan is one object, or commands to be pasted
    let screen = apply.then(|| thread::spawn(move || render::follow(events, json)));
    let control = running.control();
    let prepared = signals.cancelling(&control, running.wait()).await;
    if screen.is_some_and(|screen| screen.join().is_err()) {
        render::say("qferry: the display failed; the preparation did not");
    }
    let elapsed = began.elapsed();
    let told = show(&prepared, json, u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    if let Err(error) = told {
        return failed(&format!("what was found cannot be written: {error}"), false);
    }
    ExitCode::from(prepared.outcome.exit_code())
}

fn show(prepared: &Prepared, json: bool, t_ms: u64) -> io::Result<()> {
    if json {
        render::result("prepare", t_ms, prepared)?;
    }
    for finding in &prepared.findings {
        render::say(&format!("{:<8} {}: {finding}", finding.severity, finding.code));
    }
    if let (Some(reason), true) = (&prepared.reason, prepared.blockers().next().is_none()) {
        render::say(&format!("qferry: {} ({})", reason.message, reason.code));
    }
    match prepared.outcome {
        PreparationOutcome::Refused => render::say("refused  nothing was made"),
        PreparationOutcome::Failed | PreparationOutcome::Cancelled => {
            render::say("what was whole before is kept, and the rest is removed; run it again to go on");
        }
        PreparationOutcome::Planned | PreparationOutcome::Done => {}
    }
    if !json && prepared.outcome != PreparationOutcome::Refused {
        io::stdout().write_all(text(prepared).as_bytes())?;
    }
    io::stdout().flush()
}

/// What can be pasted into a shell, with comments.
fn text(prepared: &Prepared) -> String {
    let mut lines = Vec::new();
    for step in &prepared.steps {
        lines.push(shell::comment(&said(step)));
        if let (Some(command), StepState::Planned) = (&step.command, step.state) {
            // qemu-img create empties an image that is there, such as the guest's own when this is pasted again later
            let only_once = match step.action {
                PreparationAction::Create => format!("test -e {} || ", shell::quote(&step.path)),
                _ => String::new(),
            };
            lines.push(format!("{only_once}{}", shell::line(command)));
        }
    }
    lines.push(shell::comment("the destination's QEMU"));
    lines.push(shell::line(&prepared.qemu));
    lines.join("\n") + "\n"
}

fn said(step: &PreparationStep) -> String {
    let (disk, source, path) = (&step.disk, &step.source, &step.path);
    let bytes = step.bytes.map_or_else(|| "its bytes".to_owned(), |bytes| Bytes(bytes).to_string());
    match (step.action, step.state) {
        (PreparationAction::Create, StepState::Planned) => format!("{disk}: an empty image in place of {source}"),
        (PreparationAction::Create, StepState::Done) => format!("{disk}: {path} is made, empty"),
        (PreparationAction::Copy, StepState::Planned) => {
            format!("{disk}: --apply copies {bytes} of {source} to {path} while the guest runs")
        }
        (PreparationAction::Copy, StepState::Done) => format!("{disk}: {path} is copied, {bytes}"),
        (PreparationAction::Create | PreparationAction::Copy, StepState::Failed) => {
            format!("{disk}: {path} failed, and is removed")
        }
        (PreparationAction::Remake, StepState::Planned) => {
            format!("{disk}: --apply makes {path} anew, which a migration that was called off has written")
        }
        (PreparationAction::Remake, StepState::Done) => format!("{disk}: {path} is made anew, empty"),
        (PreparationAction::Remake, StepState::Failed) => format!("{disk}: {path} failed, and is as it was"),
        (PreparationAction::Keep, _) => format!("{disk}: {path} is there, and fits"),
        (PreparationAction::MustExist, _) => format!("{disk}: {path} must exist"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_pasted() {
        let step = PreparationStep::planned(
            PreparationAction::Create,
            "disk0",
            "/s/a\nb",
            "/d/a\nb",
            &["qemu-img", "create", "/d/a\nb"],
        );
        let prepared = Prepared {
            outcome: PreparationOutcome::Planned,
            reason: None,
            steps: vec![step],
            qemu: ["qemu", "-S"].map(str::to_owned).into(),
            findings: Vec::new(),
        };
        let expected = "# disk0: an empty image in place of /s/a?b\ntest -e '/d/a\nb' || qemu-img create '/d/a\nb'\n\
                        # the destination's QEMU\nqemu -S\n";
        assert_eq!(text(&prepared), expected);
    }
}
