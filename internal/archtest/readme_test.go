package archtest

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	typed = regexp.MustCompile("`(banger [^`]+)`")
	nouns = []string{"vm", "image", "kernel", "template", "net", "daemon", "system", "config"}
)

// What the README tells to type exists.
func TestReadmeCommands(t *testing.T) {
	banger := filepath.Join(t.TempDir(), "banger")
	if out, err := exec.Command("go", "build", "-o", banger, module+"cmd/banger").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	targets := read(t, "Makefile")
	for _, line := range commands(read(t, "README.md")) {
		words := strings.Fields(line)
		switch {
		case len(words) < 2 || strings.HasPrefix(words[1], "-"):
		case words[0] == "make":
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(words[1]) + `:`).MatchString(targets) {
				t.Errorf("README: make %s does not exist", words[1])
			}
		case words[0] == "banger":
			verb := words[1:2]
			if slices.Contains(nouns, words[1]) && len(words) > 2 {
				verb = words[1:3]
			}
			if err := exec.Command(banger, append([]string{"help"}, verb...)...).Run(); err != nil {
				t.Errorf("README: %q: banger %s does not exist", line, strings.Join(verb, " "))
			}
		}
	}
}

// commands are the lines of code blocks, and banger's in running text; a line
// may hold several after one another.
func commands(text string) []string {
	var out []string
	inCode := false
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		line := strings.TrimPrefix(strings.TrimSpace(sc.Text()), "$ ")
		switch {
		case strings.HasPrefix(line, "```"):
			inCode = !inCode
		case inCode:
			for _, part := range strings.Split(line, "; ") {
				out = append(out, strings.TrimSpace(part))
			}
		default:
			for _, m := range typed.FindAllStringSubmatch(line, -1) {
				out = append(out, m[1])
			}
		}
	}
	return out
}
