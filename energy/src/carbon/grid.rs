//! Yearly carbon intensity of electricity, life cycle, in grams of CO2-equivalent per kilowatt-hour.
//!
//! Source: Our World in Data, grapher `carbon-intensity-electricity`, from Ember's Yearly Electricity Data and the
//! Energy Institute's Statistical Review of World Energy; CC BY 4.0, credit to all three. Read in 2026: 2025 where
//! it was there, else the newest year. Such tables age fast (a third of all countries move by more than 10 % in two
//! years), so the year stays with the number everywhere.

/// One place.
pub(super) struct Row {
    /// ISO 3166 three-letter code, or the name of a region.
    pub(super) code: &'static str,
    /// English name.
    pub(super) name: &'static str,
    /// Years and their figures, the newest first; never empty.
    pub(super) years: &'static [(u16, f64)],
}

const fn row(code: &'static str, name: &'static str, years: &'static [(u16, f64)]) -> Row {
    Row { code, name, years }
}

/// All places, the World first.
#[rustfmt::skip]
pub(super) const TABLE: &[Row] = &[
    row("World", "World", &[(2025, 458.0), (2024, 471.0)]),
    row("EU27", "EU", &[(2025, 210.0), (2024, 211.0)]),
    row("Europe", "Europe", &[(2025, 271.0), (2024, 271.0)]),
    row("Asia", "Asia", &[(2024, 573.0)]),
    row("Africa", "Africa", &[(2024, 544.0)]),
    row("USA", "United States", &[(2025, 384.0), (2024, 384.0)]),
    row("CHN", "China", &[(2025, 525.0), (2024, 555.0)]),
    row("IND", "India", &[(2025, 670.0), (2024, 705.0)]),
    row("RUS", "Russia", &[(2025, 450.0), (2024, 446.0)]),
    row("JPN", "Japan", &[(2025, 477.0), (2024, 483.0)]),
    row("DEU", "Germany", &[(2025, 330.0), (2024, 336.0)]),
    row("FRA", "France", &[(2025, 41.0), (2024, 40.0)]),
    row("GBR", "United Kingdom", &[(2025, 217.0), (2024, 217.0)]),
    row("CAN", "Canada", &[(2025, 191.0), (2024, 185.0)]),
    row("BRA", "Brazil", &[(2025, 110.0), (2024, 106.0)]),
    row("KOR", "South Korea", &[(2025, 417.0), (2024, 416.0)]),
    row("ITA", "Italy", &[(2025, 285.0), (2024, 281.0)]),
    row("ESP", "Spain", &[(2025, 154.0), (2024, 146.0)]),
    row("POL", "Poland", &[(2025, 589.0), (2024, 608.0)]),
    row("NLD", "Netherlands", &[(2025, 254.0), (2024, 251.0)]),
    row("SWE", "Sweden", &[(2025, 35.0), (2024, 35.0)]),
    row("NOR", "Norway", &[(2025, 28.0), (2024, 30.0)]),
    row("FIN", "Finland", &[(2025, 57.0), (2024, 67.0)]),
    row("DNK", "Denmark", &[(2025, 114.0), (2024, 132.0)]),
    row("IRL", "Ireland", &[(2025, 257.0), (2024, 271.0)]),
    row("BEL", "Belgium", &[(2025, 150.0), (2024, 127.0)]),
    row("CHE", "Switzerland", &[(2025, 39.0), (2024, 35.0)]),
    row("AUT", "Austria", &[(2025, 117.0), (2024, 103.0)]),
    row("CZE", "Czechia", &[(2025, 401.0), (2024, 414.0)]),
    row("PRT", "Portugal", &[(2025, 128.0), (2024, 111.0)]),
    row("GRC", "Greece", &[(2025, 315.0), (2024, 322.0)]),
    row("HUN", "Hungary", &[(2025, 163.0), (2024, 184.0)]),
    row("ROU", "Romania", &[(2025, 251.0), (2024, 251.0)]),
    row("ISL", "Iceland", &[(2024, 28.0)]),
    row("EST", "Estonia", &[(2025, 319.0), (2024, 343.0)]),
    row("TUR", "Turkey", &[(2025, 475.0), (2024, 470.0)]),
    row("AUS", "Australia", &[(2025, 525.0), (2024, 554.0)]),
    row("NZL", "New Zealand", &[(2025, 93.0), (2024, 112.0)]),
    row("ZAF", "South Africa", &[(2025, 699.0), (2024, 717.0)]),
    row("MEX", "Mexico", &[(2025, 474.0), (2024, 483.0)]),
    row("ARG", "Argentina", &[(2025, 346.0), (2024, 345.0)]),
    row("CHL", "Chile", &[(2025, 289.0), (2024, 260.0)]),
    row("IDN", "Indonesia", &[(2024, 680.0)]),
    row("MYS", "Malaysia", &[(2025, 602.0), (2024, 600.0)]),
    row("SGP", "Singapore", &[(2025, 497.0), (2024, 499.0)]),
    row("THA", "Thailand", &[(2025, 546.0), (2024, 555.0)]),
    row("VNM", "Vietnam", &[(2025, 461.0), (2024, 484.0)]),
    row("PHL", "Philippines", &[(2025, 588.0), (2024, 622.0)]),
    row("TWN", "Taiwan", &[(2025, 633.0), (2024, 635.0)]),
    row("HKG", "Hong Kong", &[(2024, 675.0)]),
    row("SAU", "Saudi Arabia", &[(2024, 692.0)]),
    row("ARE", "United Arab Emirates", &[(2024, 468.0)]),
    row("ISR", "Israel", &[(2025, 493.0), (2024, 541.0)]),
    row("EGY", "Egypt", &[(2025, 563.0), (2024, 575.0)]),
    row("NGA", "Nigeria", &[(2025, 456.0), (2024, 496.0)]),
    row("KAZ", "Kazakhstan", &[(2025, 805.0), (2024, 802.0)]),
    row("PAK", "Pakistan", &[(2025, 347.0), (2024, 374.0)]),
    row("BGD", "Bangladesh", &[(2025, 696.0), (2024, 696.0)]),
    row("COL", "Colombia", &[(2025, 187.0), (2024, 298.0)]),
    row("IRN", "Iran", &[(2025, 660.0), (2024, 649.0)]),
    row("QAT", "Qatar", &[(2025, 582.0), (2024, 582.0)]),
    row("KEN", "Kenya", &[(2025, 95.0), (2024, 85.0)]),
    row("UKR", "Ukraine", &[(2022, 250.0)]),
];
