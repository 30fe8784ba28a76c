// Draws the plots of the report from the data inside the page, and fills the tables behind them when they are opened.
"use strict";
(() => {
  const { runs } = JSON.parse(document.getElementById("data").textContent);
  const charts = [];
  let colors;

  // ---- Numbers and units: three significant digits with the prefix that fits, as in the rest of the report.

  const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"]];
  const GRAMS = [[1e6, "t"], [1e3, "kg"], [1, "g"], [1e-3, "mg"], [1e-6, "µg"]];
  const TIMES = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

  const units = (name) => (name === "g" ? GRAMS : PREFIXES.map(([scale, prefix]) => [scale, prefix + name]));
  const unitFor = (largest, scales) => scales.find(([scale]) => largest >= scale) ?? scales[scales.length - 1];
  const digits = (value) => {
    const size = Math.abs(value);
    return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
  };
  const shown = (value, name) => {
    if (value === 0) return `0 ${name}`;
    const [scale, unit] = unitFor(Math.abs(value), units(name));
    return `${digits(value / scale)} ${unit}`;
  };
  const plain = (value) => String(Number(value.toPrecision(6)));
  const grouped = (value) => plain(value).replace(/\B(?=(\d{3})+$)/g, "\u2009");

  // ---- Series that follow from the bins.

  const sumOf = (run, bin) => run.domains.reduce((sum, domain) => sum + domain.joules[bin], 0);
  const cumulative = (values) => {
    let sum = 0;
    return values.map((value) => (sum += value));
  };

  for (const run of runs.filter((run) => run.domains)) {
    const bins = run.grams.length;
    const width = run.seconds / bins;
    run.timeUnit = TIMES.find(([scale]) => run.seconds >= 2 * scale) ?? TIMES[TIMES.length - 1];
    run.ends = run.grams.map((_, bin) => ((bin + 1) * width) / run.timeUnit[0]);
    run.middles = run.grams.map((_, bin) => ((bin + 0.5) * width) / run.timeUnit[0]);
    // Where a sensor could not be read all the time, power is that of the time it was read.
    run.watts = (joules) => joules.map((value, bin) => (run.read_share[bin] > 0 ? value / width / run.read_share[bin] : null));
    run.total = cumulative(run.grams.map((_, bin) => sumOf(run, bin)));
    run.totalGrams = cumulative(run.grams);
    run.totalTokens = cumulative(run.tokens);
    run.tokenCost = run.total.map((joules, bin) => (run.totalTokens[bin] > 0 ? joules / run.totalTokens[bin] : null));
  }

  // ---- Looks.

  const readColors = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const series = Array.from({ length: 8 }, (_, index) => color(`series-${index + 1}`));
    const names = ["text", "quiet", "grid", "edge", "card", "beside", "low", "middle", "high", "accent"];
    return { series, ...Object.fromEntries(names.map((name) => [name, color(name)])) };
  };

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const faded = (hex, alpha) => `rgba(${channels(hex).join(",")},${alpha})`;
  const between = (one, other, share) => {
    const [from, to] = [channels(one), channels(other)];
    return `rgb(${from.map((value, at) => Math.round(value + (to[at] - value) * share)).join(",")})`;
  };
  // As WCAG 2 has it: above 0.179 black has more contrast than white, and either has more than 4.5.
  const luminance = (parts) => {
    const [red, green, blue] = parts.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const heat = (share) =>
    share < 0.5 ? between(colors.low, colors.middle, share * 2) : between(colors.middle, colors.high, share * 2 - 1);

  // Hatched: modelled. The same everywhere on the page.
  const hatched = (color) => {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const pen = tile.getContext("2d");
    pen.fillStyle = faded(color, 0.22);
    pen.fillRect(0, 0, 8, 8);
    pen.strokeStyle = color;
    pen.lineWidth = 1.6;
    pen.beginPath();
    for (const offset of [-8, 0, 8]) {
      pen.moveTo(offset, 8);
      pen.lineTo(offset + 8, 0);
    }
    pen.stroke();
    return pen.createPattern(tile, "repeat");
  };
  const filled = (color, measured) => (measured ? faded(color, 0.8) : hatched(color));

  const axis = (title, more = {}) => ({
    border: { display: false },
    grid: { color: colors.grid, drawTicks: false },
    title: { display: Boolean(title), text: title, color: colors.quiet },
    ...more,
    ticks: { color: colors.quiet, padding: 6, maxRotation: 0, autoSkipPadding: 16, callback: grouped, ...more.ticks },
  });
  const timeAxis = (run) =>
    axis(`running time (${run.timeUnit[1]})`, { type: "linear", min: 0, max: run.seconds / run.timeUnit[0], grid: { display: false }, ticks: { includeBounds: false } });

  const options = (scales, more = {}) => ({
    animation: false,
    responsive: true,
    maintainAspectRatio: false,
    normalized: true,
    interaction: { mode: "index", intersect: false, axis: "x" },
    ...more,
    scales,
    plugins: {
      legend: {
        display: false,
        align: "start",
        labels: { color: colors.text, boxWidth: 14, boxHeight: 10, padding: 14, usePointStyle: false },
        ...more.legend,
      },
      tooltip: {
        backgroundColor: colors.text,
        titleColor: colors.card,
        bodyColor: colors.card,
        footerColor: colors.card,
        boxPadding: 4,
        padding: 10,
        cornerRadius: 6,
        ...more.tooltip,
      },
      marks: more.marks ?? false,
    },
  });

  const lineLegend = () => ({ color: colors.text, usePointStyle: true, pointStyle: "line", pointStyleWidth: 22, padding: 14 });
  const points = (xs, ys) => xs.map((x, at) => ({ x, y: ys[at] }));
  const line = (label, color, data, more = {}) => ({
    label,
    data,
    borderColor: color,
    backgroundColor: color,
    borderWidth: 2,
    pointRadius: 0,
    pointHitRadius: 6,
    ...more,
  });
  const when = (run) => (items) => {
    const item = items[0];
    if (!item) return "";
    const time = new Date(run.wall_ms[item.dataIndex]).toISOString().slice(0, 19).replace("T", " ");
    return `${digits(item.parsed.x)} ${run.timeUnit[1]}  (${time} UTC)`;
  };

  // Vertical lines with the number of their text under the plot, and its kind where there is room.
  const markKinds = { sensor: 5, carbon: 3, controller: 2 };
  Chart.register({
    id: "marks",
    afterDatasetsDraw(chart, _, { run }) {
      if (!run) return;
      const { ctx, chartArea, scales } = chart;
      const places = run.marks.map((mark) => scales.x.getPixelForValue(mark.seconds / run.timeUnit[0]));
      let free = -Infinity;
      ctx.save();
      ctx.font = `600 11px ${Chart.defaults.font.family}`;
      ctx.textBaseline = "middle";
      run.marks.forEach((mark, at) => {
        const x = Math.round(places[at]) + 0.5;
        ctx.strokeStyle = mark.kind === "restart" ? colors.text : colors.series[markKinds[mark.kind] ?? 6];
        ctx.lineWidth = 1.25;
        ctx.setLineDash([4, 3]);
        ctx.beginPath();
        ctx.moveTo(x, chartArea.top);
        ctx.lineTo(x, chartArea.bottom);
        ctx.stroke();
        const number = String(at + 1);
        const room = (places[at + 1] ?? chartArea.right) - x;
        const long = `${number} ${mark.kind}`;
        const text = ctx.measureText(long).width + 14 < room ? long : number;
        const width = ctx.measureText(text).width + 8;
        const left = Math.min(x, chartArea.right - width);
        if (left < free) return;
        ctx.setLineDash([]);
        ctx.fillStyle = colors.card;
        ctx.fillRect(left, chartArea.top + 0.5, width, 16);
        ctx.strokeRect(left, chartArea.top + 0.5, width, 16);
        ctx.fillStyle = colors.text;
        ctx.fillText(text, left + 4, chartArea.top + 9);
        free = left + width + 2;
      });
      ctx.restore();
    },
  });

  // ---- The plots.

  const plots = {
    power(run) {
      const stacks = run.domains.map((domain, at) => ({ ...domain, watts: run.watts(domain.joules), color: colors.series[at] }));
      const highest = Math.max(...run.middles.map((_, bin) => stacks.reduce((sum, domain) => sum + domain.watts[bin], 0)));
      const [scale, unit] = unitFor(highest, units("W"));
      const datasets = stacks.map((domain, at) =>
        line(domain.name, domain.color, points(run.middles, domain.watts.map((watts) => watts && watts / scale)), {
          backgroundColor: filled(domain.color, domain.measured),
          borderWidth: 1,
          fill: at === 0 ? "origin" : "-1",
          stack: "power",
          stepped: run.middles.length < 80 ? "middle" : false,
        }));
      return {
        type: "line",
        data: { datasets },
        options: options(
          { x: timeAxis(run), y: axis(`power (${unit})`, { stacked: true, beginAtZero: true, grace: run.marks.length ? "14%" : "4%" }) },
          {
            legend: { display: true },
            marks: { run },
            tooltip: {
              callbacks: {
                title: when(run),
                label: (item) => ` ${item.dataset.label}: ${digits(item.parsed.y)} ${unit}`,
                footer: (items) => `together: ${digits(items.reduce((sum, item) => sum + item.parsed.y, 0))} ${unit}`,
              },
            },
          },
        ),
      };
    },

    energy: (run) => growing(run, run.total, "J", "energy", 0),
    emissions: (run) => growing(run, run.totalGrams, "g", "emissions", 2, " CO2e"),

    loss: (run) => lossCurves([run]),
    curves: () => lossCurves(runs),

    token_cost(run) {
      const known = run.tokenCost.filter((cost) => cost !== null);
      const last = known[known.length - 1];
      const [scale, unit] = unitFor(last, units("J"));
      const highest = Math.max(...known) / scale;
      // Set-up before the first tokens would flatten all the rest.
      const twice = Number(((2 * last) / scale).toPrecision(1));
      const top = highest > twice ? { max: twice } : {};
      return {
        type: "line",
        data: { datasets: [line("cost so far", colors.series[3], points(run.ends, run.tokenCost.map((cost) => cost && cost / scale)))] },
        options: options(
          { x: timeAxis(run), y: axis(`energy per token (${unit})`, { beginAtZero: true, ...top }) },
          { tooltip: { callbacks: { title: when(run), label: (item) => ` ${digits(item.parsed.y)} ${unit} per token` } } },
        ),
      };
    },

    parts(run) {
      const color = (part) => (part.of_step ? faded(colors.series[0], 0.85) : colors.beside);
      return bars(run.parts.map((part) => ({ name: part.name, joules: part.joules, fill: color(part) })));
    },

    drawn_by(run) {
      return bars(run.drawn_by.map((part) => ({
        name: part.name,
        joules: part.joules,
        fill: filled(colors.series[part.measured ? 2 : 1], part.measured),
        note: part.how,
      })));
    },

    experts(run) {
      const { layers, cells } = run.experts;
      const width = Math.max(...cells.map(([, expert]) => expert)) + 1;
      const joules = cells.map((cell) => cell[2]);
      const [low, high] = [Math.min(...joules), Math.max(...joules)];
      const share = (value) => (high > low ? (value - low) / (high - low) : 0.5);
      const gap = (size, count) => (size / count > 8 ? 2 : size / count > 4 ? 0.5 : 0);
      return {
        type: "matrix",
        legend: { low, high },
        height: Math.min(Math.max(layers.length * 26, 130), 560) + 56,
        data: {
          datasets: [{
            data: cells.map(([row, expert, value, tokens]) => ({ x: expert, y: row, value, tokens })),
            backgroundColor: ({ raw }) => raw && heat(share(raw.value)),
            width: ({ chart }) => (chart.chartArea ? chart.chartArea.width / width - gap(chart.chartArea.width, width) : 1),
            height: ({ chart }) => (chart.chartArea ? chart.chartArea.height / layers.length - gap(chart.chartArea.height, layers.length) : 1),
          }],
        },
        options: options(
          {
            x: axis("expert", { type: "linear", offset: false, min: -0.5, max: width - 0.5, grid: { display: false }, ticks: { stepSize: 1, callback: (value) => (Number.isInteger(value) ? value : null) }, afterBuildTicks: wholeTicks(width) }),
            y: axis("layer", { type: "linear", reverse: true, offset: false, min: -0.5, max: layers.length - 0.5, grid: { display: false }, ticks: { autoSkip: false, callback: (value) => layers[value] }, afterBuildTicks: wholeTicks(layers.length) }),
          },
          {
            interaction: { mode: "nearest", intersect: true },
            tooltip: {
              callbacks: {
                title: ([item]) => item && `layer ${layers[item.raw.y]}, expert ${item.raw.x}`,
                label: ({ raw }) => ` ${shown(raw.value, "J")} for ${raw.tokens} tokens`,
              },
            },
          },
        ),
      };
    },

    intensity(run) {
      const datasets = [line("priced with", colors.series[2], points(run.middles, run.intensity.priced), { stepped: "middle" })];
      run.intensity.beside.forEach((beside, at) => {
        datasets.push(line(`beside: ${beside.name}`, colors.series[at + 3] ?? colors.beside, points(run.middles, beside.values), { stepped: "middle", borderDash: [5, 4], borderWidth: 1.5 }));
      });
      return {
        type: "line",
        data: { datasets },
        options: options(
          { x: timeAxis(run), y: axis("g CO2e per kWh", { beginAtZero: true, grace: "12%" }) },
          {
            legend: { display: datasets.length > 1, labels: lineLegend() },
            marks: { run: { ...run, marks: run.marks.filter((mark) => mark.kind === "carbon") } },
            tooltip: { callbacks: { title: when(run), label: (item) => ` ${item.dataset.label}: ${digits(item.parsed.y)} g/kWh` } },
          },
        ),
      };
    },
  };

  const wholeTicks = (count) => (scale) => {
    const step = [1, 2, 4, 8, 16, 32, 64, 128].find((step) => count / step <= 16) ?? Math.ceil(count / 16);
    scale.ticks = Array.from({ length: Math.ceil(count / step) }, (_, at) => ({ value: at * step }));
  };

  const growing = (run, values, name, title, color, suffix = "") => {
    const [scale, unit] = unitFor(values[values.length - 1], units(name));
    const xs = [0, ...run.ends];
    return {
      type: "line",
      data: {
        datasets: [line(title, colors.series[color], points(xs, [0, ...values].map((value) => value / scale)), {
          fill: "origin",
          backgroundColor: faded(colors.series[color], 0.14),
        })],
      },
      options: options(
        { x: timeAxis(run), y: axis(`${title} (${unit}${suffix})`, { beginAtZero: true }) },
        { marks: { run }, tooltip: { callbacks: { label: (item) => ` ${digits(item.parsed.y)} ${unit}${suffix}`, title: ([item]) => item && `after ${digits(item.parsed.x)} ${run.timeUnit[1]}` } } },
      ),
    };
  };

  const lossCurves = (all) => {
    const alone = all.length === 1;
    const datasets = all.flatMap((run, at) => {
      const color = colors.series[at % colors.series.length];
      const { training, evaluation } = run;
      const band = { borderWidth: 0, pointRadius: 0, pointHitRadius: 0, backgroundColor: faded(color, 0.2) };
      const curve = line(alone ? "training" : run.name, color, points(training.joules, training.mean), { borderDash: at >= colors.series.length ? [6, 3] : [] });
      const rings = line(alone ? "held out" : `${run.name}, held out`, alone ? colors.series[5] : color, points(evaluation.joules, evaluation.loss), {
        showLine: alone,
        borderWidth: 1.5,
        borderDash: [3, 3],
        pointRadius: 3.5,
        pointBorderWidth: 1.75,
        pointBackgroundColor: colors.card,
      });
      const range = alone
        ? [
            { ...band, label: "highest step", data: points(training.joules, training.max), fill: "+1" },
            { ...band, label: "lowest step", data: points(training.joules, training.min), fill: false },
          ]
        : [];
      return [curve, ...(evaluation.loss.length ? [rings] : []), ...range];
    });
    const joules = all.flatMap((run) => [...run.training.joules, ...run.evaluation.joules]).filter((value) => value > 0);
    return {
      type: "line",
      data: { datasets },
      options: options(
        {
          x: axis("energy spent, logarithmic", {
            type: "logarithmic",
            min: Math.min(...joules) * 0.95,
            max: Math.max(...joules) * 1.05,
            grid: { display: false },
            ticks: { callback: (value) => (isNice(value) ? nice(value) : null) },
          }),
          y: axis("loss (nats)"),
        },
        {
          interaction: { mode: "nearest", axis: "x", intersect: false },
          legend: {
            display: true,
            labels: {
              ...lineLegend(),
              filter: (item) => !/^(lowest|highest) step$/.test(item.text) && (alone || !item.text.endsWith(", held out")),
            },
          },
          tooltip: {
            callbacks: {
              title: ([item]) => item && `after ${shown(item.parsed.x, "J")}`,
              label: (item) => ` ${item.dataset.label}: ${item.parsed.y.toFixed(4)} nats`,
            },
          },
        },
      ),
    };
  };
  const isNice = (value) => {
    const lead = value / 10 ** Math.floor(Math.log10(value) + 1e-9);
    return [1, 2, 5].some((nice) => Math.abs(lead - nice) < 1e-6);
  };
  const nice = (value) => {
    const [scale, unit] = unitFor(value * (1 + 1e-9), units("J"));
    return `${plain(value / scale)} ${unit}`;
  };

  const bars = (parts) => {
    const all = parts.reduce((sum, part) => sum + part.joules, 0);
    const [scale, unit] = unitFor(Math.max(...parts.map((part) => part.joules)), units("J"));
    return {
      type: "bar",
      height: Math.max(parts.length * 30 + 60, 150),
      data: {
        labels: parts.map((part) => part.name),
        datasets: [{
          label: "energy",
          data: parts.map((part) => part.joules / scale),
          backgroundColor: parts.map((part) => part.fill),
          borderRadius: 3,
          borderSkipped: "start",
          barPercentage: 0.72,
          categoryPercentage: 1,
        }],
      },
      barLabels: parts.map((part) => `${shown(part.joules, "J")}  ${((100 * part.joules) / all || 0).toFixed(1)} %`),
      options: options(
        {
          x: axis(`energy (${unit})`, { beginAtZero: true }),
          y: axis("", {
            grid: { display: false },
            ticks: { color: colors.text, autoSkip: false, callback: (at) => parts[at].name },
          }),
        },
        {
          indexAxis: "y",
          layout: { padding: { right: 116 } },
          interaction: { mode: "index", intersect: false, axis: "y" },
          tooltip: { callbacks: { label: (item) => ` ${shown(parts[item.dataIndex].joules, "J")}${parts[item.dataIndex].note ? `, ${parts[item.dataIndex].note}` : ""}` } },
        },
      ),
    };
  };

  // What each bar holds, beside its end.
  Chart.register({
    id: "barLabels",
    afterDatasetsDraw(chart) {
      const labels = chart.config._config.barLabels;
      if (!labels) return;
      const { ctx } = chart;
      ctx.save();
      ctx.font = `12px ${Chart.defaults.font.family}`;
      ctx.textBaseline = "middle";
      ctx.fillStyle = colors.text;
      chart.getDatasetMeta(0).data.forEach((bar, at) => ctx.fillText(labels[at], bar.x + 7, bar.y + 0.5));
      ctx.restore();
    },
  });

  // What each expert used, in its cell, where cells are large enough to be read.
  Chart.register({
    id: "cellLabels",
    afterDatasetsDraw(chart) {
      if (chart.config.type !== "matrix") return;
      const { ctx } = chart;
      ctx.save();
      ctx.font = `12px ${Chart.defaults.font.family}`;
      ctx.textBaseline = "middle";
      ctx.textAlign = "center";
      const { data } = chart.data.datasets[0];
      chart.getDatasetMeta(0).data.forEach((cell, at) => {
        const { x, y, width, height } = cell.getProps(["x", "y", "width", "height"]);
        const text = shown(data[at].value, "J");
        if (height < 18 || width < ctx.measureText(text).width + 10) return;
        ctx.fillStyle = luminance(cell.options.backgroundColor.match(/\d+/g)) > 0.179 ? "#000000" : "#ffffff";
        ctx.fillText(text, x + width / 2, y + height / 2);
      });
      ctx.restore();
    },
  });

  // ---- The scale of the heat map, beside its field.

  const writeHeatScale = (canvas, { low, high }) => {
    const figure = canvas.closest("figure");
    figure.querySelector(".heat-scale")?.remove();
    const scale = document.createElement("p");
    scale.className = "heat-scale";
    const bar = document.createElement("span");
    bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(heat).join(", ")})`;
    scale.append(shown(low, "J"), bar, shown(high, "J"));
    canvas.parentElement.before(scale);
  };

  // ---- Tables of time series.

  const tables = {
    power: (run) => [
      ["time_utc", "running_time_s", ...run.domains.map((domain) => `${domain.name}_W`), ...run.domains.map((domain) => `${domain.name}_J`)],
      run.ends.map((_, bin) => [
        utc(run, bin), seconds(run, bin),
        ...run.domains.map((domain) => run.watts(domain.joules)[bin]).map((watts) => (watts === null ? "" : plain(watts))),
        ...run.domains.map((domain) => domain.joules[bin]),
      ]),
    ],
    energy: (run) => [
      ["time_utc", "running_time_s", "energy_J", "emissions_gCO2e", "tokens", "energy_per_token_J"],
      run.ends.map((_, bin) => [
        utc(run, bin), seconds(run, bin), run.total[bin].toFixed(6), plain(run.totalGrams[bin]), run.totalTokens[bin],
        run.tokenCost[bin] === null ? "" : plain(run.tokenCost[bin]),
      ]),
    ],
    loss: (run) => [
      ["energy_J", "kind", "loss_nats", "lowest", "highest"],
      [
        ...run.training.joules.map((joules, at) => [joules, "training", run.training.mean[at], run.training.min[at], run.training.max[at]]),
        ...run.evaluation.joules.map((joules, at) => [joules, "held out", run.evaluation.loss[at], "", ""]),
      ].sort((a, b) => a[0] - b[0]),
    ],
    intensity: (run) => [
      ["time_utc", "running_time_s", "priced_g_per_kWh", ...run.intensity.beside.map((beside) => `${beside.name}_g_per_kWh`)],
      run.ends.map((_, bin) => [
        utc(run, bin), seconds(run, bin), run.intensity.priced[bin] ?? "", ...run.intensity.beside.map((beside) => beside.values[bin] ?? ""),
      ]),
    ],
  };
  const utc = (run, bin) => new Date(run.wall_ms[bin]).toISOString();
  const seconds = (run, bin) => plain(((bin + 1) * run.seconds) / run.grams.length);

  const fillTable = (details) => {
    if (details.querySelector("table")) return;
    const [headers, rows] = tables[details.dataset.table](runs[details.dataset.run]);
    const frame = document.createElement("div");
    frame.className = "scroll";
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", details.querySelector("summary").textContent);
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const header of headers) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = header;
      if (!/^(time_utc|kind)$/.test(header)) cell.className = "number";
      head.append(cell);
    }
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      row.forEach((value, at) => {
        const cell = line.insertCell();
        cell.textContent = value;
        cell.className = head.cells[at].className;
      });
    }
    frame.append(table);
    details.append(frame);
  };
  for (const details of document.querySelectorAll("details[data-table]")) {
    details.addEventListener("toggle", () => details.open && fillTable(details));
  }

  // ---- Drawing, and drawing again in other colours.

  const draw = () => {
    colors = readColors();
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    charts.splice(0).forEach((chart) => chart.destroy());
    for (const canvas of document.querySelectorAll("canvas[data-plot]")) {
      const config = plots[canvas.dataset.plot](runs[canvas.dataset.run]);
      if (config.height) canvas.parentElement.style.height = `${config.height}px`;
      if (config.legend) writeHeatScale(canvas, config.legend);
      charts.push(new Chart(canvas, config));
    }
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
})();
