//! What is in force after which texts.

use std::fs;

use super::*;
use crate::config::load::{Reach, scan};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n";

fn service(name: &str, port: u16) -> String {
    SERVICE.replace("name: s", &format!("name: {name}")).replace("80", &port.to_string())
}

fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<_> = store.loaded().objects.services.iter().map(|object| object.meta.name.to_string()).collect();
    names.sort();
    names
}

fn said(store: &Store) -> Vec<String> {
    store.loaded().diagnostics.iter().map(ToString::to_string).collect()
}

fn files<const N: usize>(files: [(&str, &str); N]) -> io::Result<Scan> {
    let mut scan = Scan::default();
    scan.files.extend(files.map(|(name, text)| (name.into(), Ok(text.into()))));
    Ok(scan)
}

/// What is wrong, and what is in force instead.
fn wrong(store: &Store) -> Vec<(String, Standing)> {
    let wrong = store.loaded().wrong.into_iter();
    wrong.map(|wrong| (wrong.object.unwrap_or_default().to_string(), wrong.standing)).collect()
}

#[test]
fn a_file_that_becomes_wrong_or_empty_keeps_its_last_good_state_visibly() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(false);
    fs::write(dir.path().join("a.yaml"), SERVICE).unwrap();
    fs::write(dir.path().join("b.yml"), service("t", 81)).unwrap();
    assert!(store.apply(scan(dir.path(), Reach::Directory)));
    assert!(!store.apply(scan(dir.path(), Reach::Directory)));
    assert_eq!(names(&store), ["s", "t"]);

    for (bad, starts) in [
        ("a: [", "a.yaml:1:4: error[syntax]"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {prots: []}\n", "a.yaml:4:8: error[unknown-field]"),
        ("", "a.yaml: warning[file]: the object that it held last stays in force"),
    ] {
        fs::write(dir.path().join("a.yaml"), bad).unwrap();
        assert!(store.apply(scan(dir.path(), Reach::Directory)));
        assert_eq!(names(&store), ["s", "t"], "{bad}");
        assert!(said(&store)[0].starts_with(starts), "{:?}", said(&store));
        assert!(said(&store).iter().any(|line| line.contains("stays in force")), "{bad}");
    }

    fs::write(dir.path().join("a.yaml"), service("u", 82)).unwrap();
    assert!(store.apply(scan(dir.path(), Reach::Directory)));
    assert_eq!((names(&store), said(&store).len()), (vec!["t".to_owned(), "u".to_owned()], 0));

    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert!(store.apply(scan(dir.path(), Reach::Directory)));
    assert_eq!(names(&store), ["t"]);
}

#[test]
fn a_file_that_is_cut_in_the_middle_of_an_object_is_believed_only_if_it_stays_so() {
    let ports = |store: &Store| store.loaded().objects.services[0].spec.ports.len();
    let whole = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - {name: a, port: 80}\n  \
                 - {name: b, port: 81}\n";
    let half = whole.split_once("\n  - {name: b").unwrap().0;
    let mut store = Store::new(false);
    store.apply(files([("a.yaml", whole)]));
    assert!(!store.apply(files([("a.yaml", half)])), "the writer may not be done");
    assert!(!store.apply(files([("a.yaml", whole)])));
    assert!(!store.apply(files([("a.yaml", half)])), "it is another half");
    assert_eq!(ports(&store), 2);
    assert!(store.apply(files([("a.yaml", half)])), "it is meant");
    assert_eq!(ports(&store), 1);
    // Who never ends a text with a newline is not made to wait.
    assert!(store.apply(files([("a.yaml", &format!("{half}\n  - {{name: b, port: 81}}"))])));
    assert_eq!(ports(&store), 2);
}

#[test]
fn a_guard_that_is_gone_from_its_text_is_believed_gone_only_if_it_stays_so() {
    let guard =
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {}\n";
    let wrong = guard.replace("name: nobody", "name: wrong").replace("spec: {}", "spec: {actoin: DENY}");
    let guards = |store: &Store| {
        let objects = store.loaded().objects;
        objects.authorization_policies.len() + objects.refused.iter().filter(|it| &*it.meta.name == "wrong").count()
    };
    let whole = format!("{SERVICE}{guard}{wrong}");
    let mut store = Store::new(false);
    store.apply(files([("a.yaml", &whole)]));
    assert_eq!(guards(&store), 2);
    // Half of it ends where an object does, and what is written in its place may be wrong.
    let other = "---\napiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {prots: []}\n";
    for half in [SERVICE.to_owned(), format!("{SERVICE}{guard}"), format!("{SERVICE}{wrong}{other}")] {
        assert!(!store.apply(files([("a.yaml", &half)])), "the writer may not be done");
        assert_eq!(guards(&store), 2, "{half}");
        assert!(!store.apply(files([("a.yaml", &whole)])));
    }
    assert!(!store.apply(files([("a.yaml", SERVICE)])));
    assert!(store.apply(files([("a.yaml", SERVICE)])), "it is meant");
    assert_eq!(guards(&store), 0);
    // A guard that is another one by now is believed at once.
    store.apply(files([("a.yaml", &whole)]));
    assert!(store.apply(files([("a.yaml", &whole.replace("spec: {}", "spec: {action: DENY}"))])));
}

#[test]
fn settings_of_the_mesh_that_are_gone_are_told_also_after_a_restart() {
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'rootNamespace: r'}\n";
    let is_told =
        |store: &Store| said(store).iter().any(|line| line.contains("mesh.yaml") && line.contains("are gone"));
    let state = tempfile::tempdir().unwrap();
    let mut store = Store::with_state(false, state.path(), None).unwrap();
    store.apply(files([("a.yaml", SERVICE), ("mesh.yaml", settings)]));
    assert!(!is_told(&store));
    drop(store);
    let mut store = Store::with_state(false, state.path(), None).unwrap();
    store.apply(files([("a.yaml", SERVICE)]));
    assert!(is_told(&store), "{:?}", said(&store));
    store.apply(files([("a.yaml", SERVICE), ("other.yaml", settings)]));
    assert!(!is_told(&store));
    // Nobody can read them: what was in force stays.
    let broken = settings.replace("data: {mesh: '", "data: {mesh: \"");
    store.apply(files([("a.yaml", SERVICE), ("other.yaml", &broken)]));
    assert_eq!(store.loaded().objects.mesh_configs.len(), 1);
    assert_eq!(wrong(&store).first().map(|(_, standing)| *standing), Some(Standing::Held));
    drop(store);
    let mut first = Store::new(false);
    first.apply(files([("other.yaml", &broken)]));
    assert!(first.loaded().objects.refused.iter().any(|refused| refused.meta.kind == ObjectKind::MeshConfig));
}

#[test]
fn a_directory_that_is_emptied_or_gone_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), SERVICE).unwrap();
    let mut store = Store::new(false);
    store.apply(scan(&path, Reach::Directory));

    fs::remove_file(path.join("a.yaml")).unwrap();
    assert!(store.apply(scan(&path, Reach::Directory)));
    assert_eq!(names(&store), ["s"]);
    assert!(said(&store)[0].starts_with("error[vanished]: every configuration file is gone"));
    assert!(!store.apply(scan(&path, Reach::Directory)), "the alarm is raised once");

    fs::remove_dir(&path).unwrap();
    assert!(store.apply(scan(&path, Reach::Directory)));
    assert_eq!(names(&store), ["s"]);
    assert!(said(&store)[0].contains("cannot be read"));

    fs::create_dir(&path).unwrap();
    fs::write(path.join("b.yaml"), service("t", 1)).unwrap();
    assert!(store.apply(scan(&path, Reach::Directory)));
    assert_eq!((names(&store), said(&store).len()), (vec!["t".to_owned()], 0));

    let mut trusting = Store::new(true);
    trusting.apply(scan(&path, Reach::Directory));
    fs::remove_file(path.join("b.yaml")).unwrap();
    assert!(trusting.apply(scan(&path, Reach::Directory)));
    assert!(names(&trusting).is_empty());
}

#[test]
fn of_an_object_that_is_written_twice_the_last_counts() {
    let (first, second) = (service("s", 1), service("s", 2));
    let mut store = Store::new(true);
    store.apply(files([("a.yaml", &first), ("b.yaml", &second)]));
    let loaded = store.loaded();
    assert_eq!(loaded.objects.services.len(), 1);
    assert_eq!(loaded.objects.services[0].spec.ports[0].port.0, 2);
    assert_eq!(
        said(&store),
        ["a.yaml:1:1: warning[duplicate]: Service default/s: written again in b.yaml:1, which is the one that counts"]
    );
}

const WRONG: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {prots: []}\n";

#[test]
fn an_object_that_is_wrong_is_held_alone() {
    let mut store = Store::new(false);
    store.apply(files([("a.yaml", &format!("{SERVICE}---\n{}", service("t", 81)))]));
    store.apply(files([("a.yaml", &format!("{WRONG}---\n{}", service("u", 82)))]));
    assert_eq!(names(&store), ["s", "u"], "s is held, t is gone, u is new");
    assert_eq!(wrong(&store), [("Service default/s".to_owned(), Standing::Held)]);
    // Wherever it is written.
    store.apply(files([("b.yaml", WRONG)]));
    assert_eq!(names(&store), ["s"]);
    store.apply(files([("b.yaml", &service("u", 82))]));
    assert_eq!((names(&store), wrong(&store)), (vec!["u".to_owned()], vec![]));
}

#[test]
fn an_object_that_nobody_can_name_keeps_everything_that_its_text_held() {
    let both = format!("{SERVICE}---\n{}", service("t", 81));
    for unread in [
        service("t", 81).replace("metadata: {name: t}", ""),
        service("t", 81).replace("name: t", "nmae: t"),
        service("t", 81).replace("kind: Service", "kind: Sevrice"),
        "a: 1".to_owned(),
        "apiVersion: v1\nkind: List\nitems: {}\n".to_owned(),
        "apiVersion: v1\nkind: List\nitmes: []\n".to_owned(),
        "apiVersion: v1\nkind: List\n".to_owned(),
        "apiVersion: v1\nkind: List\nmetadata: {}\nitems: []\nitmes: []\n".to_owned(),
    ] {
        let mut store = Store::new(false);
        store.apply(files([("a.yaml", &both)]));
        store.apply(files([("a.yaml", &format!("{SERVICE}---\n{unread}"))]));
        assert_eq!(names(&store), ["s", "t"], "{unread}");
        assert_eq!(
            wrong(&store).iter().map(|(_, standing)| *standing).collect::<Vec<_>>(),
            [Standing::Held],
            "{unread}"
        );

        let mut anew = Store::new(false);
        anew.apply(files([("a.yaml", &format!("{SERVICE}---\n{unread}"))]));
        assert_eq!(names(&anew), ["s"], "{unread}");
        assert_eq!(
            wrong(&anew).iter().map(|(_, standing)| *standing).collect::<Vec<_>>(),
            [Standing::Unread],
            "{unread}"
        );
    }
}

#[test]
fn what_a_wrong_object_governs_is_read_with_patience() {
    let host = |kind: &str, spec: &str| {
        let text = format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
        let mut store = Store::new(false);
        store.apply(files([("a.yaml", &text)]));
        let refused = store.loaded().objects.refused;
        let governs = refused.first().map(|refused| format!("{:?}", refused.governs)).unwrap_or_default();
        (governs, wrong(&store).pop().expect("wrong").1)
    };
    let to = |hosts: &str, export_to: &str, selector: &str| {
        format!("Hosts {{ hosts: {hosts}, export_to: {export_to}, selector: {selector} }}")
    };
    let closed = |governs: String| (governs, Standing::FailsClosed);
    for (kind, spec, expected) in [
        ("VirtualService", "{hosts: [x, z], htpp: []}", closed(to(r#"["x", "z"]"#, "[]", "{}"))),
        ("VirtualService", "{hosts: [x], http: 1, exportTo: [.]}", closed(to(r#"["x"]"#, r#"["."]"#, "{}"))),
        ("VirtualService", "{hosts: [x], exportTo: [1]}", closed(to(r#"["x"]"#, "[]", "{}"))),
        ("VirtualService", "{hosts: [' X '], http: 1, exportTo: [a_b, .]}", closed(to(r#"["x"]"#, "[]", "{}"))),
        ("DestinationRule", "{host: 'x '}", closed(to(r#"["x"]"#, "[]", "{}"))),
        ("VirtualService", "{hosts: [x, 1]}", (to(r#"["x"]"#, "[]", "{}"), Standing::Unread)),
        ("VirtualService", "{hosts: [x], gateways: [edge], htpp: []}", closed("Nothing".to_owned())),
        ("VirtualService", "{hosts: [x], gateways: [], htpp: []}", closed(to(r#"["x"]"#, "[]", "{}"))),
        ("VirtualService", "{http: [{rout: []}]}", closed("Delegated".to_owned())),
        ("VirtualService", "{hosst: [x], http: [{route: []}]}", closed(to(r#"["x"]"#, "[]", "{}"))),
        ("VirtualService", "{names: [x], http: [{route: []}]}", (to(r#"["x"]"#, "[]", "{}"), Standing::Unread)),
        ("VirtualService", "{names: [1], http: [{route: []}]}", ("Delegated".to_owned(), Standing::Unread)),
        ("VirtualService", "{hosts: x}", closed(to(r#"["x"]"#, "[]", "{}"))),
        ("DestinationRule", "{host: x, subset: []}", closed(to(r#"["x"]"#, "[]", "{}"))),
        (
            "DestinationRule",
            "{host: x, workloadSelector: {matchLabels: {a: b}}, subset: []}",
            closed(to(r#"["x"]"#, "[]", r#"{"a": "b"}"#)),
        ),
        ("DestinationRule", "{hots: x}", closed(to(r#"["x"]"#, "[]", "{}"))),
        ("DestinationRule", "{name: x, subsets: [{name: v1}]}", (to(r#"["v1", "x"]"#, "[]", "{}"), Standing::Unread)),
        ("DestinationRule", "{name: 1}", (String::new(), Standing::Unread)),
        ("ServiceEntry", "{hosts: [x.y], prots: []}", closed(to(r#"["x.y"]"#, "[]", "{}"))),
        ("WorkloadEntry", "{adress: 1.2.3.4}", ("Nothing".to_owned(), Standing::NotInForce)),
    ] {
        assert_eq!(host(kind, spec), expected, "{kind} {spec}");
    }
}

#[test]
fn files_of_other_tools_are_notes() {
    let mut store = Store::new(false);
    store.apply(files([
        ("kustomization.yaml", "resources: [a.yaml]"),
        ("values.yaml", "image: {tag: v1}"),
        ("values-prod.yaml", "image: {tag: v2}"),
        ("Chart.yaml", "apiVersion: v2\nname: shop"),
        ("package.json", "{\"name\": \"web\"}"),
        ("tsconfig.json", "{ // comments\n \"a\": 1}"),
        ("compose.yaml", SERVICE),
    ]));
    assert_eq!((names(&store), wrong(&store)), (vec!["s".to_owned()], vec![]));
    assert!(said(&store).iter().all(|line| line.contains("info[ignored]")), "{:?}", said(&store));
    assert_eq!(said(&store).len(), 6);
    // Under any other name it may be an object that somebody forgot to finish.
    store.apply(files([("web.yaml", "image: {tag: v1}")]));
    assert_eq!(wrong(&store), [(String::new(), Standing::Unread)]);
}

const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: s}\nspec: {host: s, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n";

/// Where the TLS rule is in force, and how many rules are.
fn tls(store: &Store) -> (usize, usize) {
    let rules = store.loaded().objects.destination_rules;
    (rules.iter().filter(|rule| rule.meta.origin.source.text.contains("ISTIO_MUTUAL")).count(), rules.len())
}

#[test]
fn a_later_text_that_is_broken_or_emptied_does_not_put_the_earlier_copy_in_force() {
    let weak = RULE.replace("ISTIO_MUTUAL", "DISABLE");
    let wrong_copy = RULE.replace("trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}", "subset: []");
    for broken in ["", " \n", "a: [", "a: 1", &format!("{RULE}}}{{")] {
        for base in [&weak, &wrong_copy] {
            let mut store = Store::new(false);
            store.apply(files([("00.yaml", base), ("99.yaml", RULE)]));
            assert_eq!(tls(&store), (1, 1));
            store.apply(files([("00.yaml", base), ("99.yaml", broken)]));
            assert_eq!(tls(&store), (1, 1), "{broken:?}");
            assert!(said(&store).iter().any(|line| line.contains("not in force: what 99.yaml said")), "{broken:?}");
            // Nor does any other change meanwhile.
            store.apply(files([("00.yaml", base), ("50.yaml", SERVICE), ("99.yaml", broken)]));
            assert_eq!(tls(&store), (1, 1), "{broken:?}");
        }
    }
    // A later copy counts, whatever becomes of the earlier one.
    let mut store = Store::new(false);
    store.apply(files([("50.yaml", &weak)]));
    store.apply(files([("50.yaml", "a: ["), ("99.yaml", RULE)]));
    assert_eq!(tls(&store), (1, 1));
    // And the earlier one where the later one is gone for certain.
    store.apply(files([("50.yaml", &weak)]));
    assert_eq!(tls(&store), (0, 1));
}

#[test]
fn what_disappears_while_a_text_cannot_be_read_may_have_moved_there() {
    let broken = format!("{RULE}}}{{");
    let both = format!("{SERVICE}---\n{RULE}");
    for (before, after) in [
        // Renamed and broken at once.
        ([("a.yaml", SERVICE), ("tls.yaml", RULE)], [("a.yaml", SERVICE), ("tls2.yaml", &broken)]),
        // Taken out of one text and put into another.
        ([("00.yaml", &both), ("01.yaml", SERVICE)], [("00.yaml", SERVICE), ("new.yaml", &broken)]),
        ([("00.yaml", &both), ("01.yaml", SERVICE)], [("00.yaml", SERVICE), ("new.yaml", "a: 1")]),
        // A weaker copy that did not count, does not do so now.
        (
            [("00.yaml", &RULE.replace("ISTIO_MUTUAL", "DISABLE")), ("98.yaml", RULE)],
            [("00.yaml", &RULE.replace("ISTIO_MUTUAL", "DISABLE")), ("99.yaml", &broken)],
        ),
    ] {
        let state = tempfile::tempdir().unwrap();
        let mut store = Store::with_state(false, state.path(), None).unwrap();
        store.apply(files(before));
        assert_eq!(tls(&store), (1, 1));
        store.apply(files(after));
        assert_eq!(tls(&store), (1, 1), "{after:?}");
        let why = "held last stays in force, because it may be in a file that cannot be read";
        assert!(said(&store).iter().any(|line| line.contains(why)), "{:?}", said(&store));

        // Over a restart, too, whether it was broken before or after.
        for _ in 0..2 {
            drop(store);
            let mut anew = Store::with_state(false, state.path(), None).unwrap();
            anew.apply(files(after));
            assert_eq!(tls(&anew), (1, 1), "{after:?}");
            anew.apply(files(before));
            store = anew;
        }
        // What can be read again is taken at its word.
        store.apply(files([("a.yaml", SERVICE)]));
        assert_eq!(tls(&store), (0, 0), "{after:?}");
    }
    // Whoever hands in and takes back says so.
    let mut store = Store::new(false);
    store.apply(files([("a.yaml", "a: 1")]));
    store.set_text("tls", RULE);
    assert_eq!(tls(&store), (1, 1));
    store.remove_text("tls");
    assert_eq!(tls(&store), (0, 0));
    // What is written in a later text is in force.
    let mut store = Store::new(false);
    store.apply(files([("00.yaml", &RULE.replace("ISTIO_MUTUAL", "DISABLE"))]));
    store.apply(files([("10.yaml", RULE), ("99.yaml", "a: 1")]));
    assert_eq!(tls(&store), (1, 1));
}

#[test]
fn a_directory_in_the_place_of_a_file_takes_nothing_away() {
    for reach in [Reach::Directory, Reach::Tree] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), SERVICE).unwrap();
        fs::write(dir.path().join("tls.yaml"), RULE).unwrap();
        let mut store = Store::new(false);
        store.apply(scan(dir.path(), reach));
        fs::remove_file(dir.path().join("tls.yaml")).unwrap();
        fs::create_dir(dir.path().join("tls.yaml")).unwrap();
        store.apply(scan(dir.path(), reach));
        assert_eq!((names(&store), tls(&store)), (vec!["s".to_owned()], (1, 1)), "{reach:?}");
        assert!(said(&store)[0].starts_with("tls.yaml: "), "{reach:?}: {:?}", said(&store));
    }
}

#[test]
fn a_name_or_a_namespace_that_cannot_be_keeps_what_its_text_held() {
    for (place, bad) in [
        ("metadata: {name: s", "metadata: {namespace: 'default ', name: s"),
        ("metadata: {name: s", "metadata: {namespace: Default, name: s"),
        ("metadata: {name: s", "metadata: {namespace: a_b, name: s"),
        ("metadata: {name: s", "metadata: {name: S!"),
        ("metadata: {name: s", "metadata: {nmae: s"),
    ] {
        let mut store = Store::new(false);
        store.apply(files([("a.yaml", RULE)]));
        store.apply(files([("a.yaml", &RULE.replace(place, bad))]));
        assert_eq!(tls(&store), (1, 1), "{bad}");
        assert_eq!(wrong(&store).iter().map(|(_, standing)| *standing).collect::<Vec<_>>(), [Standing::Held], "{bad}");
        assert!(store.loaded().objects.refused.is_empty(), "{bad}");
    }
}

#[test]
fn a_rule_without_a_name_is_not_taken_for_one_of_another_text() {
    let nameless = RULE.replace("name: s", "nmae: s").replace("host: s", "host: t");
    let mut store = Store::new(false);
    store.apply(files([("a.yaml", RULE)]));
    store.apply(files([("a.yaml", "a: 1"), ("b.yaml", &nameless)]));
    assert_eq!((tls(&store), store.loaded().objects.refused.len()), ((1, 1), 1));
}

#[test]
fn a_file_that_becomes_nothing_but_its_first_lines_keeps_what_it_held() {
    let config_map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n";
    for cut_off in [
        "",
        " \n",
        "# licence\n",
        "---\n",
        "# licence\n---\n...\n",
        "~",
        config_map,
        "apiVersion: v1\nkind: List\nitems: []\n",
    ] {
        let mut store = Store::new(false);
        store.apply(files([("a.yaml", SERVICE), ("tls.yaml", RULE)]));
        store.apply(files([("a.yaml", SERVICE), ("tls.yaml", cut_off)]));
        assert_eq!(tls(&store), (1, 1), "{cut_off}");
        let why = "tls.yaml: warning[file]: the object that it held last stays in force";
        assert!(said(&store).iter().any(|line| line.starts_with(why)), "{:?}", said(&store));
        store.apply(files([("a.yaml", SERVICE)]));
        assert_eq!(tls(&store), (0, 0), "{cut_off}");
    }
}

#[test]
fn a_start_from_an_emptied_directory_keeps_what_the_state_holds_with_the_alarm() {
    let state = tempfile::tempdir().unwrap();
    let start = |allow_empty: bool| Store::with_state(allow_empty, state.path(), None).unwrap();
    assert!(start(false).apply(files([("a.yaml", SERVICE)])));
    for _ in 0..2 {
        let mut store = start(false);
        assert!(store.apply(files([])));
        assert_eq!(names(&store), ["s"]);
        assert!(said(&store)[0].starts_with("error[vanished]: every configuration file is gone"), "{:?}", said(&store));
        assert!(!store.apply(files([])));
    }
    // What comes back is read as it is.
    let mut store = start(false);
    store.apply(files([]));
    assert!(store.apply(files([("b.yaml", &service("t", 81))])));
    assert_eq!((names(&store), said(&store).len()), (vec!["t".to_owned()], 0));
    drop(store);
    let mut store = start(true);
    store.apply(files([]));
    assert!(names(&store).is_empty());
}

#[test]
fn a_directory_without_any_file_is_not_silent() {
    let mut store = Store::new(false);
    assert!(store.apply(files([])));
    assert_eq!(said(&store), ["warning[file]: there is no configuration file: nothing is configured"]);
    assert!(store.apply(files([("a.yaml", SERVICE)])));
    assert!(said(&store).is_empty());
}

#[test]
fn of_what_is_wrong_is_said_what_concerns_its_kind() {
    for standing in Standing::ALL {
        for kind in ["VirtualService", "RateLimit", "WasmPlugin", "Telemetry", ""] {
            let said = standing.instead(kind);
            let others = ["RateLimit", "WasmPlugin", "Telemetry", "access logs", "limited", "pass without it"];
            let is_of_another = |word: &&str| match *word {
                "access logs" => kind != "Telemetry",
                "limited" => kind != "RateLimit",
                "pass without it" => kind != "WasmPlugin",
                kind => said.contains(kind),
            };
            let found: Vec<&str> =
                others.into_iter().filter(is_of_another).filter(|word| said.contains(word)).collect();
            assert!(found.is_empty(), "{standing:?} {kind}: {said}");
        }
    }
    let object = Some("Telemetry shop/a".into());
    let wrong = Wrong { object, file: "a.yaml".into(), reason: "why".into(), standing: Standing::FailsClosed };
    assert!(wrong.to_string().contains("access logs that it governs are not written: why"), "{wrong}");
}
