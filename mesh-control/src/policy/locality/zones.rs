//! Zone-aware routing: how much of what a client sends stays in its own zone, and which zones get the rest, so that none gets
//! more than its part of all endpoints is (Envoy: `regenerateLocalityRoutingStructures`). What there is of clients is taken
//! for what they send.

use std::collections::BTreeMap;
use std::sync::Arc;

/// How many there are in each zone, of clients or of endpoints.
pub type Zones = BTreeMap<Arc<str>, u64>;

/// All of it: shares are parts of so many.
pub const WHOLE: u32 = 10_000;

/// The share of each zone in the requests of a client in zone `own`; zones that are not named get nothing. `callers` are the
/// clients of its kind. `None` where zones make no difference: there is one only, nobody knows where the clients are, or the
/// own zone has no name or no endpoint.
pub fn shares(own: &str, callers: &Zones, endpoints: &Zones) -> Option<Vec<(Arc<str>, u32)>> {
    let whole = u64::from(WHOLE);
    let part = |zones: &Zones, zone: &str| {
        let count = zones.get(zone).copied().unwrap_or_default();
        (count * whole).checked_div(zones.values().sum()).unwrap_or_default()
    };
    let (has, needs) = (part(endpoints, own), part(callers, own));
    let (own, _) = endpoints.get_key_value(own)?;
    if own.is_empty() || has == 0 || callers.is_empty() || endpoints.len() < 2 {
        return None;
    }
    let share = |part: u64| u32::try_from(part).unwrap_or(WHOLE);
    let spare: Vec<(&Arc<str>, u64)> = endpoints
        .keys()
        .filter(|zone| *zone != own)
        .map(|zone| (zone, part(endpoints, zone).saturating_sub(part(callers, zone))))
        .filter(|(_, spare)| *spare > 0)
        .collect();
    let all_spare: u64 = spare.iter().map(|(_, spare)| spare).sum();
    if has >= needs || all_spare == 0 {
        return Some(vec![(Arc::clone(own), WHOLE)]);
    }
    let stays = has * whole / needs;
    let others = spare.into_iter().map(|(zone, spare)| (Arc::clone(zone), share((whole - stays) * spare / all_spare)));
    let all = std::iter::once((Arc::clone(own), share(stays))).chain(others);
    Some(all.filter(|(_, share)| *share > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(counts: &[u64]) -> Zones {
        let named = ["a", "b", "c"].into_iter().zip(counts);
        named.filter(|(_, count)| **count > 0).map(|(zone, count)| (Arc::from(zone), *count)).collect()
    }

    #[test]
    fn what_the_own_zone_can_take_stays_and_the_rest_goes_where_there_is_room() {
        // (clients, endpoints) of zones a, b and c -> shares for a client in a
        type Case<'c> = (&'c [u64], &'c [u64], Option<&'c [(&'c str, u32)]>);
        let cases: [Case<'_>; 10] = [
            (&[1, 1], &[1, 1], Some(&[("a", 10_000)])),
            (&[1, 1], &[3, 1], Some(&[("a", 10_000)])),
            // Half of the clients are here, and a quarter of the endpoints.
            (&[2, 2], &[1, 3], Some(&[("a", 5_000), ("b", 5_000)])),
            // All others have room, one of them three times as much.
            (&[6, 1, 1], &[4, 2, 2], Some(&[("a", 6_666), ("b", 1_667), ("c", 1_667)])),
            (&[4, 4, 0], &[2, 4, 2], Some(&[("a", 5_000), ("c", 5_000)])),
            // No client of its kind is here but itself, which registered nowhere.
            (&[0, 5], &[1, 5], Some(&[("a", 10_000)])),
            // Zones make no difference.
            (&[1, 1], &[0, 4], None),
            (&[1, 1], &[4, 0], None),
            (&[], &[1, 1], None),
            (&[1, 1], &[], None),
        ];
        for (callers, endpoints, expected) in cases {
            let found = shares("a", &zones(callers), &zones(endpoints));
            let found: Option<Vec<_>> = found.as_ref().map(|all| all.iter().map(|(zone, of)| (&**zone, *of)).collect());
            assert_eq!(found.as_deref(), expected, "{callers:?} {endpoints:?}");
        }
    }

    #[test]
    fn no_zone_gets_more_than_its_part_of_the_endpoints() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..5_000 {
            let [callers, endpoints] = [(); 2].map(|()| zones(&[(); 3].map(|()| random.u64(0..9))));
            if callers.is_empty() || endpoints.len() < 3 {
                continue;
            }
            let mut arrives = Zones::new();
            for (zone, count) in &callers {
                for (to, share) in shares(zone, &callers, &endpoints).unwrap() {
                    *arrives.entry(to).or_default() += count * u64::from(share);
                }
            }
            let (sent, all) = (callers.values().sum::<u64>() as f64, endpoints.values().sum::<u64>() as f64);
            for (zone, arrived) in arrives {
                let (arrived, fair) = (arrived as f64 / 10_000.0 / sent, endpoints[&zone] as f64 / all);
                assert!(arrived <= fair + 0.002, "{zone}: {arrived} of {fair}: {callers:?} {endpoints:?}");
            }
        }
    }
}
