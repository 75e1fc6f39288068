//! The program's life is the process's life.

use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_code_is_the_programs_as_a_shell_tells_it() {
    let control = control("").await;
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -s KILL $$", 137)] {
        assert_eq!(Sidecar::start(&control, "app", &[], script).code().await, Some(code), "{script}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-sidecar"));
    command.args(["--control", &control.xds_addr().to_string(), "--", "/no/such/program"]);
    assert_eq!(within(command.status()).await.unwrap().code(), Some(127));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_is_told_of_the_proxy_and_nothing_of_the_mesh() {
    let control = control("").await;
    let script = "echo $HTTP_PROXY $http_proxy $HTTPS_PROXY $https_proxy; echo $NO_PROXY $no_proxy; \
                  echo ${MESH_CONTROL_TOKEN-unset} ${GRPC_XDS_BOOTSTRAP_CONFIG-unset}";
    let mut sidecar = Sidecar::start(&control, "app", &[], script);
    let proxy = format!("http://{}", sidecar.proxy().await);
    assert_eq!(sidecar.line().await, [&*proxy; 4].join(" "));
    let direct = "localhost,127.0.0.1,::1";
    assert_eq!(sidecar.line().await, [direct; 2].join(" "));
    assert_eq!(sidecar.line().await, "unset unset");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_the_program_and_whatever_it_started() {
    let control = control("").await;
    // A signal that ends the group is passed over by the shell in front.
    let script = "trap 'echo got HUP' HUP; trap 'echo got TERM; exit 3' TERM; \
                  sh -c 'trap \"echo child; exit\" HUP; echo ready; while :; do sleep 0.05; done' & \
                  while :; do sleep 0.05; done";
    let mut sidecar = Sidecar::start(&control, "app", &[], script);
    assert_eq!(sidecar.line().await, "ready");
    sidecar.signal("HUP");
    let mut both = [sidecar.line().await, sidecar.line().await];
    both.sort();
    assert_eq!(both, ["child", "got HUP"]);
    sidecar.signal("TERM");
    assert_eq!(sidecar.line().await, "got TERM");
    assert_eq!(sidecar.code().await, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_does_not_end_is_killed_and_a_second_signal_is_told_at_once() {
    let control = control("").await;
    let script = "trap 'echo again' INT TERM; echo ready; while :; do sleep 0.05; done";
    let mut sidecar = Sidecar::start(&control, "app", &["--stop-timeout", "0.4"], script);
    assert_eq!(sidecar.line().await, "ready");
    sidecar.signal("TERM");
    assert_eq!(sidecar.line().await, "again");
    sidecar.signal("INT");
    assert_eq!(sidecar.line().await, "again");
    assert_eq!(sidecar.code().await, Some(137));
}

/// Waits until nobody holds the other end of this pipe: every process that had it is gone.
async fn gone(sidecar: &mut Sidecar) {
    while within(sidecar.stdout.next_line()).await.unwrap().is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_left_when_the_program_ends_or_the_process_is_killed() {
    let control = control("").await;
    // What it leaves in its group ends with it.
    let mut sidecar = Sidecar::start(&control, "app", &[], "sleep 1000 & echo left; exit 5");
    assert_eq!(sidecar.line().await, "left");
    assert_eq!(sidecar.code().await, Some(5));
    gone(&mut sidecar).await;
    if cfg!(target_os = "linux") {
        let mut sidecar = Sidecar::start(&control, "app", &[], "trap '' TERM; echo ready; exec sleep 1000");
        assert_eq!(sidecar.line().await, "ready");
        sidecar.signal("KILL");
        gone(&mut sidecar).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_calls_the_program_before_it_answers() {
    let control = control("").await;
    // A port that nobody listens on for now.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut sidecar = Sidecar::start(&control, "app", &["--app-port", &port.port().to_string()], "sleep 1000");
    sidecar.proxy().await;
    let caller = mesh(&control, "caller").cold_start_wait(Duration::from_secs(20)).start().unwrap();
    let early = within(caller.client().get("http://app/")).await;
    assert!(early.is_err(), "{early:?}");
    let listener = TcpListener::bind(port).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while head(&mut stream).await.is_some() {
                    stream.write_all(ok("here").as_bytes()).await.unwrap();
                }
            });
        }
    });
    sidecar.ready().await;
    let answer = async {
        loop {
            if let Ok(answer) = caller.client().get("http://app/").await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let answer = within(answer).await;
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_end_requests_end_first_and_then_the_program_is_told() {
    let control = control("").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let script = "trap 'echo told; exit 4' TERM; while :; do sleep 0.05; done";
    let mut sidecar = Sidecar::start(&control, "app", &["--app-port", &port], script);
    // Whether it answers is asked by a connection of its own.
    drop(within(listener.accept()).await.unwrap());
    sidecar.ready().await;
    let caller = mesh(&control, "caller").start().unwrap();
    let call = tokio::spawn({
        let client = caller.client();
        async move { client.get("http://app/slow").await.unwrap().into_body().collect().await.unwrap().to_bytes() }
    });
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    assert!(within(head(&mut stream)).await.unwrap().starts_with("GET /slow "));
    sidecar.signal("TERM");
    sidecar.says("draining").await;
    // Its answer comes in the middle of the drain; the program has not been told yet.
    stream.write_all(ok("to the end").as_bytes()).await.unwrap();
    assert_eq!(within(call).await.unwrap(), "to the end");
    sidecar.says("the program is told").await;
    assert_eq!(sidecar.line().await, "told");
    assert_eq!(sidecar.code().await, Some(4));
}
