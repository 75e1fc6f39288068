//! A process that is told to end. It is this test's own binary, which runs the ignored test below.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use mesh_core::fixed::Fixed;
use mesh_tower::Mesh;
use tokio::sync::Notify;

#[tokio::test]
#[ignore = "it is the process that the other tests start"]
async fn process_that_drains() {
    let mesh = Mesh::builder().source(Fixed::new()).lame_duck(Duration::from_secs(3)).start().unwrap();
    mesh.drain().begin_on_signals().unwrap();
    println!("\nready");
    mesh.drain().finished().await;
    println!("\ndrained");
    // Long enough for whoever sends one signal more.
    let _ = tokio::time::timeout(Duration::from_secs(3), Notify::new().notified()).await;
}

fn start() -> (Child, BufReader<ChildStdout>) {
    let arguments = ["--ignored", "--exact", "process_that_drains", "--nocapture"];
    let mut child =
        Command::new(std::env::current_exe().unwrap()).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    while read(&mut stdout) != "ready" {}
    (child, stdout)
}

fn read(stdout: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    assert!(stdout.read_line(&mut line).unwrap() > 0, "it has ended");
    line.trim().to_owned()
}

/// Sends these signals in one go: two of one name could be one.
fn signal(child: &Child, names: &[&str]) {
    let kills: Vec<String> = names.iter().map(|name| format!("kill -s {name} {}", child.id())).collect();
    let kill = kills.join("; ");
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn a_second_signal_right_behind_the_first_does_not_cut_the_drain_short() {
    let (mut child, mut stdout) = start();
    signal(&child, &["TERM", "INT"]);
    while read(&mut stdout) != "drained" {}
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_later_second_signal_ends_the_process_at_once() {
    let (mut child, _stdout) = start();
    let code = loop {
        signal(&child, &["TERM"]);
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
    };
    assert_eq!(code, Some(143));
}
