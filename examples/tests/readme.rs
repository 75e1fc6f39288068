//! The first steps of the README, taken as they are written there.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);
const README: &str = include_str!("../../README.md");

/// What stands between ```` ```language ```` and the end of the block that has these words.
fn block(language: &str, words: &str) -> &'static str {
    let opening = format!("```{language}\n");
    let mut blocks = README.split(&opening).skip(1).filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains(words)).expect("the README has this block")
}

/// A command of the README, on ports that are free.
fn command(line: &str, control: &str, dir: &Path) -> Command {
    let line = line
        .strip_prefix("cargo run --bin ")
        .expect("a program of this workspace")
        .replace("127.0.0.1:15010", control)
        .replace("127.0.0.1:8080", "127.0.0.1:0");
    let (program, arguments) = line.split_once(" -- ").expect("arguments");
    let program = Path::new(env!("CARGO_BIN_EXE_mesh-curl")).with_file_name(program);
    let mut command = Command::new(&program);
    command.args(arguments.split_whitespace()).current_dir(dir).kill_on_drop(true);
    command.env("MESH_CONTROL_XDS_ADDR", "127.0.0.1:0").env("MESH_CONTROL_STATUS_ADDR", "127.0.0.1:0");
    command.env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn start(mut command: Command) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command.spawn().expect("`cargo test --workspace` builds it");
    let out = child.stdout.take().expect("stdout is a pipe");
    (child, BufReader::new(out).lines())
}

/// The next line that ends with these words, or what follows them.
async fn said(lines: &mut Lines<BufReader<ChildStdout>>, words: &str) -> String {
    let found = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            if let Some((_, rest)) = line.split_once(words) {
                return rest.to_owned();
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("nobody says {words:?}"))
}

#[tokio::test]
async fn the_first_steps_by_hand_divide_the_calls_as_the_file_says() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("shop")).unwrap();
    std::fs::write(dir.path().join("shop/reviews.yaml"), block("yaml", "weight: 75")).unwrap();
    let lines: Vec<&str> = block("console", "--version v2").lines().collect();
    let [control, v1, v2, curl] = lines[..] else { panic!("{lines:?}") };

    let (_control, mut out) = start(command(control, "", dir.path()));
    let address = said(&mut out, "xds listening on ").await;
    let mut echoes = Vec::new();
    for echo in [v1, v2] {
        let (child, mut out) = start(command(echo, &address, dir.path()));
        said(&mut out, " serving").await;
        echoes.push((child, out));
    }
    let mut curl = command(curl, &address, dir.path());
    let out = tokio::time::timeout(PATIENCE, curl.args(["-o", "json"]).output()).await.unwrap().unwrap();
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let summary = &last["summary"];
    assert_eq!((&summary["requests"], &summary["failed"]), (&100.into(), &0.into()), "{summary}");
    let backends = summary["backend"].as_object().unwrap();
    let calls = |version: &str| {
        let own = backends.iter().filter(|(name, _)| name.starts_with(&format!("reviews-{version}-127.0.0.1")));
        own.filter_map(|(_, calls)| calls.as_u64()).sum::<u64>()
    };
    // 75 to 25: that v1 gets no more than v2 happens once in ten million times.
    assert!(calls("v2") > 0 && calls("v1") > calls("v2") && calls("v1") + calls("v2") == 100, "{summary}");
}

#[tokio::test]
async fn three_lines_show_who_asks_and_a_client_without_a_certificate_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("identity")).unwrap();
    std::fs::write(dir.path().join("identity/web.yaml"), block("yaml", "name: hello")).unwrap();
    let lines: Vec<&str> = block("console", "--name hello").lines().collect();
    let [control, echo, curl] = lines[..] else { panic!("{lines:?}") };

    let (_control, mut out) = start(command(control, "", dir.path()));
    let control = said(&mut out, "xds listening on ").await;
    let (_echo, mut out) = start(command(echo, &control, dir.path()));
    let address = said(&mut out, " listening on ").await;
    said(&mut out, " serving").await;
    for target in ["http://hello/", "xds:///hello:80"] {
        let mut curl = command(&curl.replace("http://hello/", target), &control, dir.path());
        let out = tokio::time::timeout(PATIENCE, curl.args(["-o", "json"]).output()).await.unwrap().unwrap();
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        let call: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        let is_grpc = target.starts_with("xds:");
        assert_eq!(call["status"], if is_grpc { "OK".into() } else { serde_json::Value::from(200) }, "{out}");
        if !is_grpc {
            let echo: serde_json::Value = serde_json::from_str(call["body"].as_str().unwrap()).unwrap();
            assert_eq!(echo["peer"], "spiffe://cluster.local/ns/default/sa/web");
            assert_eq!(echo["tls"]["version"], "TLSv1.3", "{echo}");
            assert!(call["body"].as_str().unwrap().contains(quoted("\"peer\"")), "as the README has it");
        }
    }

    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: hello\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset, where bytes that nobody read were thrown away, is an end, too.
    _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    assert_eq!(String::from_utf8_lossy(&answer), "");
}

/// What the README has between backquotes, beginning with these words.
fn quoted(words: &str) -> &'static str {
    let mut quotes = README.split('`').filter(|quote| quote.starts_with(words));
    quotes.next().expect("the README has this quotation")
}

/// Lines of the README for a shell, on ports that are free.
fn script(lines: &[&str], control: &str, dir: &Path) -> Command {
    let bin = Path::new(env!("CARGO_BIN_EXE_mesh-curl")).parent().expect("a directory").display().to_string();
    let script = lines.join("\n").replace("cargo run --bin ", &format!("{bin}/")).replace(" -- ", " ");
    let script = script.replace("127.0.0.1:15010", control).replace("127.0.0.1:8080", "127.0.0.1:0");
    // What is started is what is killed.
    let script = match script.rsplit_once("hello.json ") {
        Some((before, program)) if program.contains("mesh-echo") => format!("{before}hello.json exec {program}"),
        _ => script,
    };
    let mut command = Command::new("sh");
    command.args(["-ec", &script]).current_dir(dir).kill_on_drop(true);
    command.env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

#[tokio::test]
async fn with_a_token_each_two_workloads_know_each_other_without_dev() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("identity")).unwrap();
    std::fs::write(dir.path().join("identity/web.yaml"), block("yaml", "name: hello")).unwrap();
    let lines: Vec<&str> = block("console", "MESH_CONTROL_TOKEN").lines().collect();
    let [control, hello, its_file, echo, web, web_file, curl] = lines[..] else { panic!("{lines:?}") };

    let (_control, mut out) = start(command(control, "", dir.path()));
    let control = said(&mut out, "xds listening on ").await;
    let run = async |lines: &[&str]| {
        let mut script = script(lines, &control, dir.path());
        let output = tokio::time::timeout(PATIENCE, script.stderr(Stdio::piped()).output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&[hello, its_file]).await;
    let (_echo, mut out) = start(script(&[echo], &control, dir.path()));
    said(&mut out, " serving").await;
    run(&[web, web_file]).await;
    let call = async || {
        let mut curl = script(&[&format!("{curl} -o json")], &control, dir.path());
        let output = tokio::time::timeout(PATIENCE, curl.output()).await.unwrap().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str::<serde_json::Value>(out.lines().next().unwrap()).unwrap()
    };
    let first = call().await;
    assert_eq!(first["status"], 200, "{first}");
    let echo: serde_json::Value = serde_json::from_str(first["body"].as_str().unwrap()).unwrap();
    assert_eq!(echo["peer"], "spiffe://cluster.local/ns/default/sa/web");
    let again = call().await;
    assert!(again["error"].as_str().unwrap().contains("mesh-control token create"), "{again}");

    // The second server, beside the first one.
    std::fs::create_dir(dir.path().join("other")).unwrap();
    let second = block("console", "--config other").lines().next().unwrap();
    let second = second.replace("127.0.0.1:16010", "127.0.0.1:0").replace("127.0.0.1:16014", "127.0.0.1:0");
    let (_second, mut out) = start(command(&second, "", dir.path()));
    said(&mut out, "status listening on ").await;
}
