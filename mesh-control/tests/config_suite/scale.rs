//! Five hundred services with ten endpoints each: a workload that comes or goes costs one set of endpoints.

use std::time::{Duration, Instant};

use mesh_control::catalog::Kind;
use mesh_control::plane::Plane;
use mesh_control::registry::Workload;

use crate::support::{Seen, client};

const SERVICES: usize = 500;

fn plane() -> Plane {
    let mut text = String::new();
    for n in 0..SERVICES {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}}}\nspec: {{selector: {{app: s{n}}}, ports: [{{port: 80, name: http}}]}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{n}}}\nspec: {{hosts: [s{n}], http: [{{route: [{{destination: {{host: s{n}}}}}]}}]}}\n"
        );
    }
    let plane = Plane::from_yaml(&text).unwrap();
    for n in 0..SERVICES {
        for e in 0..10 {
            plane.register(endpoint(n, e, 80));
        }
    }
    plane
}

fn endpoint(service: usize, number: usize, port: u16) -> Workload {
    let address = format!("10.{}.{}.{number}:{port}", service / 250, service % 250).parse().unwrap();
    let app = format!("s{service}");
    Workload::new(&format!("{service}-{number}"), "default", &app, address).labelled([("app", app.as_str())])
}

#[test]
fn one_endpoint_of_five_thousand_re_renders_its_own_set_only() {
    let plane = plane();
    let name = |n: usize| format!("outbound|80||s{n}.default.svc.cluster.local");
    let told = |plane: &Plane| {
        let seen = Seen::new(plane, client("default"));
        let all = (0..SERVICES).flat_map(|n| {
            let endpoints = seen.get(Kind::Endpoints, &name(n)).unwrap();
            let routes = seen.get(Kind::Route, &name(n)).unwrap();
            let cluster = seen.get(Kind::Cluster, &name(n)).unwrap();
            let listener = seen.get(Kind::Listener, &format!("s{n}:80")).unwrap();
            [endpoints, routes, cluster, listener]
        });
        all.map(|encoded| encoded.body).collect::<Vec<_>>()
    };
    let before = told(&plane);
    let start = Instant::now();
    plane.register(endpoint(123, 4, 8080));
    let published = start.elapsed();
    let after = told(&plane);
    let seen = start.elapsed();
    println!("published after {published:?}, seen by a client of everything after {seen:?}");
    // Ten times what it may take in a release build, since this is none.
    assert!(published < Duration::from_millis(100), "{published:?}");
    let fresh: Vec<usize> = (0..before.len()).filter(|n| before[*n].as_ptr() != after[*n].as_ptr()).collect();
    assert_eq!(fresh, [123 * 4], "nothing else was rendered again");
}
