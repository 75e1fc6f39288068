//! The environment of a process as the place of its bootstrap. Each case runs in a process of its own, since the
//! environment cannot be changed safely in this one.
#![cfg(feature = "testing")]

use std::process::Command;

use mesh_core::xds::Bootstrap;

const TEXT: &str = r#"{"xds_servers": [{"server_uri": "SERVER", "channel_creds": [{"type": "insecure"}]}]}"#;

#[test]
fn the_environment_names_a_file_or_holds_the_text() {
    let path = std::env::temp_dir().join(format!("mesh-bootstrap-{}.json", std::process::id()));
    std::fs::write(&path, TEXT.replace("SERVER", "from-file:1")).expect("a writable folder");
    let file = path.to_str().expect("a readable path");
    let text = TEXT.replace("SERVER", "from-text:1");
    let cases = [
        (vec![("GRPC_XDS_BOOTSTRAP", file)], "from-file:1"),
        (vec![("GRPC_XDS_BOOTSTRAP_CONFIG", text.as_str())], "from-text:1"),
        // The file counts where both are set (gRFC A27).
        (vec![("GRPC_XDS_BOOTSTRAP", file), ("GRPC_XDS_BOOTSTRAP_CONFIG", &text)], "from-file:1"),
        (vec![("GRPC_XDS_BOOTSTRAP", ""), ("GRPC_XDS_BOOTSTRAP_CONFIG", &text)], "from-text:1"),
        (vec![("GRPC_XDS_BOOTSTRAP", "no/such/file")], "xDS bootstrap no/such/file: "),
        (vec![("GRPC_XDS_BOOTSTRAP_CONFIG", "{\n!")], "xDS bootstrap GRPC_XDS_BOOTSTRAP_CONFIG: line 2, column 1: "),
        (vec![], "neither GRPC_XDS_BOOTSTRAP nor GRPC_XDS_BOOTSTRAP_CONFIG is set"),
    ];
    for (environment, expected) in cases {
        let output = Command::new(std::env::current_exe().expect("this test's own program"))
            .args(["--exact", "bootstrap::shows_the_bootstrap_of_its_environment", "--ignored", "--nocapture"])
            .env_remove("GRPC_XDS_BOOTSTRAP")
            .env_remove("GRPC_XDS_BOOTSTRAP_CONFIG")
            .envs(environment.clone())
            .output()
            .expect("a process");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains(expected), "{environment:?}: {shown}");
    }
    std::fs::remove_file(&path).expect("the file is ours");
}

#[test]
#[ignore = "the test above runs it in processes of their own"]
#[allow(clippy::print_stdout, reason = "that is how the other test reads it")]
fn shows_the_bootstrap_of_its_environment() {
    match Bootstrap::from_env() {
        Ok(bootstrap) => println!("{}", bootstrap.servers[0].uri),
        Err(error) => println!("{error}"),
    }
}
