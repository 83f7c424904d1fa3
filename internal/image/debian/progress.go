package debian

import (
	"fmt"
	"strings"

	"github.com/banger-dev/banger/internal/aptsource"
)

// progress turns what apt and dpkg print into a share of the work. Each
// package is fetched, unpacked and set up; a package's worth is spread over
// the three as they take time.
type progress struct {
	total, fetched, unpacked, configured int
	counts                               int      // how often apt has said how many packages come
	tail                                 []string // last lines, for a failure
	report                               func(done, total int64, message string)
}

// tailLines is how many lines a failure can look back on.
const tailLines = 40

// expected is used until apt has said how many packages there are.
const expected = 330

// counts is how often that is: the essential packages first, then the rest.
const counts = 2

// Shares of one package's work, in thousandths.
const (
	fetchShare  = 250
	unpackShare = 450
	setupShare  = 300
)

// line takes one line of output.
func (p *progress) line(s string) {
	s = strings.TrimSpace(aptsource.Scrub(strings.ToValidUTF8(s, "?")))
	if s == "" {
		return
	}
	if p.tail = append(p.tail, s); len(p.tail) > tailLines {
		p.tail = p.tail[1:]
	}
	verb, rest, _ := strings.Cut(s, " ")
	message := ""
	switch {
	case strings.HasPrefix(verb, "Get:") && strings.Contains(s, " Packages "):
		message = "reading package lists"
	case strings.HasPrefix(verb, "Get:") && p.total > 0:
		p.fetched++
		message = "fetching packages"
	case verb == "Unpacking":
		p.unpacked++
		message = "unpacking " + firstWord(rest)
	case s != "" && strings.HasPrefix(s, "Setting up "):
		p.configured++
		message = "setting up " + firstWord(strings.TrimPrefix(s, "Setting up "))
	case strings.Contains(s, " newly installed"):
		p.count(s)
	}
	if message != "" {
		p.tell(message)
	}
}

// count reads "0 upgraded, 221 newly installed, …".
func (p *progress) count(s string) {
	var up, added int
	if n, err := fmt.Sscanf(s, "%d upgraded, %d newly installed", &up, &added); err == nil && n == 2 && added > 0 && added < 100_000 {
		p.total += added
		p.counts++
	}
}

func (p *progress) tell(message string) {
	if p.report == nil {
		return
	}
	total := p.total
	if p.counts < counts {
		total = max(total, expected)
	}
	done := (min(p.fetched, total)*fetchShare + min(p.unpacked, total)*unpackShare + min(p.configured, total)*setupShare) / 1000
	p.report(int64(done), int64(total), message)
}

// failure gives the lines that say what went wrong, the telling ones first.
func (p *progress) failure() string {
	for _, mark := range []string{"dpkg: error", "E: ", "error: ", "W: "} {
		for i := len(p.tail) - 1; i >= 0; i-- {
			s := p.tail[i]
			if strings.HasPrefix(s, mark) && !strings.HasPrefix(s, "E: run_chroot") && !strings.Contains(s, "failed: E:") && !strings.HasPrefix(s, "E: apt-get") && !strings.HasPrefix(s, "E: mmdebstrap failed") && !strings.HasPrefix(s, "E: special hook") {
				return s
			}
		}
	}
	if len(p.tail) > 0 {
		return p.tail[len(p.tail)-1]
	}
	return "it said nothing"
}

func firstWord(s string) string {
	w, _, _ := strings.Cut(s, " ")
	w, _, _ = strings.Cut(w, ":")
	return w
}
