package ui

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Align is where a column's text stands.
type Align bool

// Text is left, numbers are right.
const (
	Left  Align = false
	Right Align = true
)

// Column is a column of a table.
type Column struct {
	Title string
	Align Align
}

// Table writes rows in aligned columns, without borders; a column that is
// empty in every row is left out.
func (u *UI) Table(cols []Column, rows [][]string) error {
	used := make([]bool, len(cols))
	width := make([]int, len(cols))
	for i, c := range cols {
		width[i] = Width(c.Title)
	}
	shown := make([][]string, len(rows))
	for r, row := range rows {
		shown[r] = make([]string, len(cols))
		for i := range cols {
			if i >= len(row) {
				continue
			}
			cell := row[i]
			if u.o.OutTTY {
				cell = u.localise(SanitizeLine(cell))
			}
			shown[r][i] = cell
			width[i] = max(width[i], Width(cell))
			used[i] = used[i] || cell != ""
		}
	}
	var b strings.Builder
	titles := make([]string, len(cols))
	for i, c := range cols {
		titles[i] = c.Title
		used[i] = used[i] || len(rows) == 0
	}
	for _, row := range append([][]string{titles}, shown...) {
		b.WriteString(strings.TrimRight(joinCells(cols, row, width, used), " "))
		b.WriteByte('\n')
	}
	_, err := u.o.Out.Write([]byte(b.String()))
	return err
}

func joinCells(cols []Column, row []string, width []int, used []bool) string {
	var b strings.Builder
	for i, c := range cols {
		if !used[i] {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("  ")
		}
		pad := strings.Repeat(" ", max(0, width[i]-Width(row[i])))
		if c.Align == Right {
			b.WriteString(pad + row[i])
		} else {
			b.WriteString(row[i] + pad)
		}
	}
	return b.String()
}

// Fields writes "name  value" lines, values aligned; empty values are left out.
func (u *UI) Fields(pairs [][2]string) error {
	w := 0
	for _, p := range pairs {
		if p[1] != "" {
			w = max(w, Width(p[0]))
		}
	}
	for _, p := range pairs {
		if p[1] == "" {
			continue
		}
		if err := u.Print("%s%s  %s", p[0], strings.Repeat(" ", w-Width(p[0])), u.oneLine(p[1])); err != nil {
			return err
		}
	}
	return nil
}

func (u *UI) oneLine(s string) string {
	if u.o.OutTTY {
		return SanitizeLine(s)
	}
	return strings.ReplaceAll(s, "\n", " ")
}

// Width is how many columns a terminal uses for s: none for combining marks,
// two for East Asian wide characters.
func Width(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case r < 0x300:
			n++
		case unicode.Is(unicode.Mn, r), unicode.Is(unicode.Me, r):
		case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
			r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
			r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
			n += 2
		default:
			n++
		}
	}
	return n
}

// cut shortens s to w columns, an ellipsis marking the cut.
func (u *UI) cut(s string, w int) string {
	if Width(s) <= w {
		return s
	}
	if w <= 0 {
		return ""
	}
	var b strings.Builder
	n := 0
	for _, r := range s {
		rw := Width(string(r))
		if n+rw > w-1 {
			break
		}
		b.WriteRune(r)
		n += rw
	}
	if !u.unicode {
		return b.String() + "~"
	}
	return b.String() + "…"
}

// Check writes one line of doctor: " ok    name  message".
func (u *UI) Check(status, name string, width int, message string) error {
	c := green
	switch status {
	case "warn":
		c = yellow
	case "fail":
		c = red
	}
	name, message = u.oneLine(name), u.oneLine(message)
	mark := u.paintOut(c, status) + strings.Repeat(" ", max(0, 4-Width(status)))
	line := fmt.Sprintf(" %s  %s%s  ", mark, name, strings.Repeat(" ", max(0, width-Width(name))))
	if u.o.OutTTY {
		message = u.localise(message)
	}
	_, err := io.WriteString(u.o.Out, strings.TrimRight(line+message, " ")+"\n")
	return err
}
