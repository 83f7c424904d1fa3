package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// series is one figure's measurements.
type series []time.Duration

func (s series) median() time.Duration {
	if len(s) == 0 {
		return 0
	}
	c := slices.Clone(s)
	slices.Sort(c)
	return c[len(c)/2]
}

func (s series) span() string {
	if len(s) == 0 {
		return ""
	}
	return fmt.Sprintf("%s to %s", show(slices.Min(s)), show(slices.Max(s)))
}

// row is one line of the table: a figure beside its floor, taken in turns.
type row struct {
	name  string
	ours  series
	floor series
	what  string // the floor
	bar   string // what is promised
	met   bool
}

func show(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// table writes the rows as Markdown.
func table(w io.Writer, rows []row) {
	fmt.Fprintln(w, "| figure | median | span | floor | floor's median | ratio | bar | met |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|")
	for _, r := range rows {
		ratio := "–"
		if f := r.floor.median(); f > 0 {
			ratio = fmt.Sprintf("%.2f", float64(r.ours.median())/float64(f))
		}
		met := "yes"
		if !r.met {
			met = "**no**"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s |\n",
			r.name, show(r.ours.median()), r.ours.span(), r.what, show(r.floor.median()), ratio, r.bar, met)
	}
}
