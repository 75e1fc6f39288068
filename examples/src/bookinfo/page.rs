//! The product page as HTML.

use std::fmt::Write as _;

use serde_json::Value;

use super::onward::Leg;
use super::productpage::{Part, Product};

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Bookinfo</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
  h1 { margin-bottom: 0 } h2 { border-bottom: 1px solid #ddd; margin-top: 2rem }
  dl { display: grid; grid-template-columns: 8rem 1fr } dt { color: #777 } dd { margin: 0 }
  blockquote { margin: 1rem 0; padding-left: 1rem; border-left: 3px solid #ddd }
  .stars { letter-spacing: .1em } .black { color: #222 } .red { color: #c22 }
  .note { color: #777; font-size: .85rem } .failed { color: #a00 }
</style>
</head>
<body>
"#;

/// The page of a product.
pub(super) fn html(product: &Product) -> String {
    let mut page = String::from(HEAD);
    let title = text(product.details.content.as_ref(), "title").unwrap_or_else(|| "A book".to_owned());
    _ = write!(page, "<h1>{title}</h1>\n<p class=\"note\">{} ", visitor(product));
    _ = writeln!(page, "&middot; reload to see who answers next</p>");
    _ = writeln!(page, "<h2>Details</h2>");
    details(&mut page, &product.details);
    _ = writeln!(page, "<h2>Reviews</h2>");
    reviews(&mut page, &product.reviews);
    _ = writeln!(page, "<h2>Who answered</h2>\n<dl>");
    _ = writeln!(page, "<dt>productpage</dt><dd class=\"note\">{}</dd>", escape(&product.backend));
    answered(&mut page, "details", &product.details.call);
    answered(&mut page, "reviews", &product.reviews.call);
    if let Some(ratings) = product.ratings() {
        answered(&mut page, "ratings", &ratings);
    }
    page.push_str("</dl>\n</body>\n</html>\n");
    page
}

fn visitor(product: &Product) -> String {
    match &product.user {
        Some(user) => format!("for <b>{}</b>, or <a href=\"/productpage\">sign out</a>", escape(user)),
        None => "<a href=\"/productpage?user=jason\">sign in as jason</a>".to_owned(),
    }
}

fn details(page: &mut String, part: &Part) {
    let Some(content) = &part.content else {
        return failed(page, "Details are not available.", &part.call);
    };
    page.push_str("<dl>\n");
    for key in ["author", "year", "type", "pages", "language", "isbn"] {
        if let Some(value) = text(Some(content), key) {
            _ = writeln!(page, "<dt>{key}</dt><dd>{value}</dd>");
        }
    }
    page.push_str("</dl>\n");
}

fn reviews(page: &mut String, part: &Part) {
    let Some(content) = &part.content else {
        return failed(page, "Reviews are not available.", &part.call);
    };
    let reviews = content.get("reviews").and_then(Value::as_array);
    for review in reviews.into_iter().flatten() {
        let (reader, words) = (text(Some(review), "reader"), text(Some(review), "text"));
        _ = write!(page, "<blockquote>{}", words.unwrap_or_default());
        _ = write!(page, "<br><span class=\"note\">{}</span> ", reader.unwrap_or_default());
        if let Some(rating) = review.get("rating").filter(|rating| !rating.is_null()) {
            stars(page, rating);
        }
        page.push_str("</blockquote>\n");
    }
}

fn stars(page: &mut String, rating: &Value) {
    let Some(stars) = rating.get("stars").and_then(Value::as_u64) else {
        _ = write!(page, "<span class=\"failed\">ratings are unavailable</span>");
        return;
    };
    let color = text(Some(rating), "color").unwrap_or_default();
    let full = usize::try_from(stars.min(5)).unwrap_or(5);
    let (full, empty) = ("★".repeat(full), "☆".repeat(5 - full));
    _ = write!(page, "<span class=\"stars {color}\" title=\"{stars} of 5\">{full}{empty}</span>");
}

fn failed(page: &mut String, what: &str, call: &Leg) {
    let why = call.error.as_deref().unwrap_or_default();
    _ = writeln!(
        page,
        "<p class=\"failed\">{what}</p>\n<p class=\"note\">{} {}</p>",
        escape(&call.status),
        escape(why)
    );
}

fn answered(page: &mut String, service: &str, call: &Leg) {
    let who = call.backend.as_deref().unwrap_or("nobody");
    let (who, status) = (escape(who), escape(&call.status));
    _ = writeln!(page, "<dt>{service}</dt><dd class=\"note\">{who}: {status} in {:.1} ms</dd>", call.ms);
}

/// A value of a part, ready for the page.
fn text(content: Option<&Value>, key: &str) -> Option<String> {
    match content?.get(key)? {
        Value::String(text) => Some(escape(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn product(reviews: Value) -> Product {
        let part = |content: Value| Part { call: Leg::default(), content: Some(content) };
        Product {
            user: Some("<jason>".into()),
            details: part(json!({"title": "A & B"})),
            reviews: part(reviews),
            ..Product::default()
        }
    }

    #[test]
    fn a_page_shows_stars_and_trusts_no_text() {
        let rating = json!({"stars": 4, "color": "red"});
        let page = html(&product(json!({"reviews": [{"reader": "<r>", "text": "\"", "rating": rating}]})));
        assert!(page.contains("stars red") && page.contains("★★★★☆"));
        assert!(page.contains("A &amp; B") && page.contains("&lt;r&gt;") && page.contains("&lt;jason&gt;"));
    }

    #[test]
    fn a_page_without_its_parts_is_still_a_page() {
        let page = html(&Product::default());
        assert!(page.contains("Details are not available.") && page.contains("Reviews are not available."));
        let page = html(&product(json!({"reviews": [{"rating": {"error": "x"}}], "ratings": null})));
        assert!(page.contains("ratings are unavailable"));
    }
}
