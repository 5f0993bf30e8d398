//! `qferry diagnose --fix`: the remedies of the causes that were named, on the user's word, and after one more look.

use super::{
    diagnose_options::Diagnose,
    exit::{FOUND, failed, misused},
    render,
};
use crate::{
    codes::DiagnosisCode,
    diagnosis::{Cause, DiagnoseSettings, Diagnosis, ObservedMonitor, RemedyCommand, carry_out, diagnose},
    progress::describe,
};
use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

/// A cause, and its commands with the monitors that they go to.
struct AgreedRemedy<'a> {
    cause: &'a Cause,
    commands: Vec<(&'a ObservedMonitor, &'a RemedyCommand)>,
}

/// Carries out the remedies of all causes of a code.
pub(super) async fn run(
    options: &Diagnose,
    settings: &DiagnoseSettings,
    diagnosis: &Diagnosis,
    code: DiagnosisCode,
) -> ExitCode {
    let found: Vec<&Cause> = diagnosis.causes.iter().filter(|cause| cause.code == code).collect();
    if found.is_empty() {
        render::say(&format!("qferry: {code} was not found, so nothing was changed"));
        return if diagnosis.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) };
    }
    let (remedies, left) = match sort(options, diagnosis, &found) {
        Ok(sorted) => sorted,
        Err(message) => return failed(&message, options.json),
    };
    let Some(first) = remedies.first() else {
        return misused(&left.join("; "), options.json);
    };
    for remedy in &remedies {
        render::say(first_evidence(remedy.cause));
        for (at, command) in &remedy.commands {
            // a remedy that cannot be worded is among those that are left
            command.wording(at).into_iter().for_each(|said| render::say(&format!("  {said}")));
        }
    }
    left.iter().for_each(|words| render::say(words));
    if !options.yes {
        if !io::stdin().is_terminal() {
            return misused("nobody can be asked: say --yes to have these commands sent", options.json);
        }
        render::say(&format!("This can cost: {}. Send? [y/N]", first.cause.risk));
        let mut answer = String::new();
        let asked = io::stdin().read_line(&mut answer);
        if asked.is_err() || !matches!(answer.trim(), "y" | "Y" | "yes") {
            render::say("qferry: nothing was changed");
            return ExitCode::from(FOUND);
        }
    }
    carry_out_all(options, settings, diagnosis, &remedies).await
}

/// The remedies that can be carried out, and of the others why they cannot.
fn sort<'a>(
    options: &'a Diagnose,
    diagnosis: &Diagnosis,
    found: &[&'a Cause],
) -> Result<(Vec<AgreedRemedy<'a>>, Vec<String>), String> {
    let (mut remedies, mut left) = (Vec::new(), Vec::new());
    for &cause in found {
        let left_to_you = |why: &str| {
            let evidence = first_evidence(cause);
            format!("the remedy of {} is left to you: {why} ({evidence})", cause.code)
        };
        if !cause.fixable {
            left.push(left_to_you(&cause.remedy));
            continue;
        }
        let mut commands = Vec::new();
        let mut refusal = None;
        for command in &cause.commands {
            let at = address(options, diagnosis, command);
            let at = at.ok_or_else(|| format!("the {} was not given", command.side))?;
            refusal = refusal.or(command.wording(at).err());
            commands.push((at, command));
        }
        match refusal {
            Some(why) => left.push(left_to_you(&why)),
            None => remedies.push(AgreedRemedy { cause, commands }),
        }
    }
    Ok((remedies, left))
}

/// Looks once more, and carries out what is still right. What others have done meanwhile is respected.
async fn carry_out_all(
    options: &Diagnose,
    settings: &DiagnoseSettings,
    before: &Diagnosis,
    remedies: &[AgreedRemedy<'_>],
) -> ExitCode {
    render::say("qferry: looking once more before anything is sent");
    let now = match diagnose(settings).await {
        Ok(now) => now,
        Err(error) => {
            let message = format!("nothing was changed, because it could not be looked again: {}", describe(&error));
            return failed(&message, options.json);
        }
    };
    let (mut refused, mut errors, mut mended) = (false, Vec::new(), Vec::new());
    for AgreedRemedy { cause, commands } in remedies {
        if let Some(changed) = now.changed_since(before, cause) {
            refused = true;
            render::say(&format!("qferry: {} was not mended, because of what has changed: {changed}", cause.code));
            continue;
        }
        for (at, command) in commands {
            if let Err(error) = carry_out(at, command).await {
                errors.push(format!("the {} did not carry out {}: {error}", command.side, command.name));
                break;
            }
            render::say(&format!("qferry: the {} has carried out {}", command.side, command.name));
        }
        mended.push(*cause);
    }
    if !errors.is_empty() {
        return failed(&errors.join("; "), options.json);
    }
    let kept = if mended.is_empty() { Vec::new() } else { kept(settings, &mended).await };
    kept.iter().for_each(|words| render::say(words));
    if refused || !kept.is_empty() { ExitCode::from(FOUND) } else { ExitCode::SUCCESS }
}

/// What a cause was known by first, by which one of several causes of a code is told from the others.
fn first_evidence(cause: &Cause) -> &str {
    cause.evidence.first().map_or("", String::as_str)
}

/// The causes that are there still after their remedy: QEMU's consent is no proof that it has helped.
async fn kept(settings: &DiagnoseSettings, mended: &[&Cause]) -> Vec<String> {
    // a side that cannot be looked at has none of these causes
    let Ok(after) = diagnose(settings).await else { return Vec::new() };
    let still = mended.iter().filter(|cause| after.still_has(cause));
    let words = |cause: &&&Cause| {
        let evidence = first_evidence(cause);
        format!(
            "qferry: the remedy of {} was carried out, and the cause is there still: it was that {evidence}",
            cause.code
        )
    };
    still.map(|cause| words(&cause)).collect()
}

/// The address of the side that a command is for.
fn address<'a>(options: &'a Diagnose, diagnosis: &Diagnosis, command: &RemedyCommand) -> Option<&'a ObservedMonitor> {
    let side = diagnosis.side(command.side)?;
    options.sides.iter().find(|address| address.to_string() == side.address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};
    use serde_json::{Value, json};
    use std::{
        path::Path,
        sync::{Arc, Mutex},
    };
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::{UnixListener, UnixStream},
    };

    /// The ids of the jobs that were resumed.
    type Resumed = Arc<Mutex<Vec<String>>>;

    /// A source with three paused mirrors. Between the first connection and the next one somebody has begun one of them
    /// anew.
    async fn serve(stream: UnixStream, number: usize, resumed: Resumed) {
        let (read, mut write) = stream.into_split();
        let greeting =
            json!({ "QMP": { "version": { "qemu": { "major": 10, "minor": 0, "micro": 13 } }, "capabilities": [] } });
        write.write_all(format!("{greeting}\n").as_bytes()).await.ok();
        let job = |id: &str, offset: u64| {
            json!({ "device": id, "type": "mirror", "len": 100, "offset": offset,
            "paused": true, "status": "paused", "io-status": "nospace" })
        };
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let command: Value = serde_json::from_str(&line).expect("JSON");
            let anew = if number == 0 { 50 } else { 3 };
            let answer = match command["execute"].as_str() {
                Some("query-status") => json!({ "status": "running" }),
                Some("query-block-jobs") => json!([job("a", 50), job("b", anew), job("c", 50)]),
                Some("block-job-resume") => {
                    let id = command["arguments"]["device"].as_str().expect("an id");
                    resumed.lock().expect("no panic").push(id.to_owned());
                    json!({})
                }
                _ => json!({}),
            };
            let answer = json!({ "return": answer, "id": command["id"] });
            write.write_all(format!("{answer}\n").as_bytes()).await.ok();
        }
    }

    fn options(path: &Path) -> Diagnose {
        let words = ["diagnose", path.to_str().expect("text"), "--fix", "mirror-paused", "--yes", "--for", "2s"];
        let matches = Diagnose::augment_args(clap::Command::new("diagnose")).get_matches_from(words);
        Diagnose::from_arg_matches(&matches).expect("options")
    }

    #[tokio::test]
    async fn each_cause_of_the_code_is_mended_that_is_still_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a listener");
        let resumed = Resumed::default();
        let resumes = resumed.clone();
        let server = tokio::spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(serve(stream, number, resumes.clone()));
            }
        });
        let options = options(&path);
        let mut settings = DiagnoseSettings::new(options.sides.clone());
        settings.lasting = options.lasting;
        let before = diagnose(&settings).await.expect("a diagnosis");
        let code = run(&options, &settings, &before, DiagnosisCode::MirrorPaused).await;
        server.abort();
        assert_eq!(*resumed.lock().expect("no panic"), ["a", "c"]);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(FOUND)));
    }
}
