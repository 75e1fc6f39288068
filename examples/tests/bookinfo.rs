//! Bookinfo as a whole: real sockets, the embedded control plane.

use http_body_util::BodyExt;
use mesh_examples::bookinfo::{Bookinfo, Product};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_put_together_from_all_services() {
    let bookinfo = Bookinfo::start().await.unwrap();
    let client = bookinfo.caller("reader").unwrap().client();
    let mut versions = std::collections::BTreeSet::new();
    for _ in 0..60 {
        let response = client.get("http://productpage:9080/api/v1/products/0").await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let product: Product = serde_json::from_slice(&body).unwrap();
        assert!(product.details.call.is_ok() && product.reviews.call.is_ok(), "{product:?}");
        let version = product.reviews.call.version("reviews").unwrap().to_owned();
        match product.ratings() {
            None => assert_eq!(version, "v1"),
            Some(ratings) => assert!(ratings.is_ok() && ratings.version("ratings") == Some("v1"), "{ratings:?}"),
        }
        versions.insert(version);
    }
    assert_eq!(versions.into_iter().collect::<Vec<_>>(), ["v1", "v2", "v3"]);
    let page = client.get("http://productpage:9080/productpage?user=jason").await.unwrap();
    let page = page.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8_lossy(&page);
    assert!(page.contains("for <b>jason</b>") && page.contains("William Shakespeare"), "{page}");
    bookinfo.stop().await.unwrap();
}
