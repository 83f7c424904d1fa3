package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
)

func TestACommandThatIsAFileOfTheWorkspaceIsFoundThere(t *testing.T) {
	files := map[string]bool{"/home/u/repo/run.sh": true, "/home/u/repo/sub/x": true, "/bin/ls": true, "/home/u/other": true}
	isFile := func(p string) bool { return files[p] }
	for _, c := range []struct{ dir, cmd, want string }{
		{"/home/u/repo", "./run.sh", "./run.sh"},
		{"/home/u", "./run.sh", "./run.sh"},
		{"/home/u", "repo/run.sh", "/root/repo/run.sh"},
		{"/home/u/repo/sub", "./x", "/root/repo/sub/x"},
		{"/home/u/repo/sub", "../run.sh", "/root/repo/run.sh"},
		{"/home/u/repo", "/home/u/repo/sub/x", "/root/repo/sub/x"},
		{"/home/u/repo", "/bin/ls", "/bin/ls"},
		{"/home/u/repo", "../other", "../other"},
		{"/home/u/repo", "make", "make"},
		{"/home/u/repo", "./made/later.sh", "./made/later.sh"},
	} {
		argv := []string{c.cmd, "a b"}
		got := inWorkspace(argv, c.dir, "/home/u/repo", "/root/repo", isFile)
		if got[0] != c.want || got[1] != "a b" || argv[0] != c.cmd {
			t.Errorf("in %s: %s became %q, want %s", c.dir, c.cmd, got, c.want)
		}
	}
}

func TestSidesOfCp(t *testing.T) {
	for in, want := range map[string]endpoint{
		"web:/etc/x":  {vm: "web", path: "/etc/x"},
		"web:x":       {vm: "web", path: "/root/x"},
		"web:":        {vm: "web", path: "/root", intoDir: true},
		"web:/":       {vm: "web", path: "/", contents: true, intoDir: true},
		"web:d/":      {vm: "web", path: "/root/d", intoDir: true},
		"web:d/.":     {vm: "web", path: "/root/d", contents: true, intoDir: true},
		"web:../x":    {vm: "web", path: "/x"},
		"web:a:b":     {vm: "web", path: "/root/a:b"},
		"x":           {path: "/here/x"},
		"./a:b":       {path: "/here/a:b"},
		"/abs/../y":   {path: "/y"},
		".":           {path: "/here", intoDir: true},
		"d/.":         {path: "/here/d", contents: true, intoDir: true},
		"d/":          {path: "/here/d", intoDir: true},
		"-":           {stream: true},
		"sub/web:x":   {path: "/here/sub/web:x"},
		"web:/a/./b/": {vm: "web", path: "/a/b", intoDir: true},
	} {
		want.typed = in
		if got, err := parseEndpoint(in, "/here"); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":x"} {
		if _, err := parseEndpoint(in, "/here"); err == nil {
			t.Errorf("%q is no error", in)
		}
	}
}

func TestValuesOfFlags(t *testing.T) {
	var s size
	if err := s.Set("1.5GiB"); err != nil || s != 3<<29 {
		t.Errorf("%d, %v", s, err)
	}
	for _, bad := range []string{"", "0", "-1", "x", "1X", "0.0001"} {
		if err := s.Set(bad); err == nil {
			t.Errorf("size %q is no error", bad)
		}
	}
	var d span
	if err := d.Set("90s"); err != nil || d.proto().AsDuration() != 90*time.Second {
		t.Errorf("%v, %v", d, err)
	}
	for _, bad := range []string{"", "0s", "-1s", "5", "1d"} {
		if err := d.Set(bad); err == nil {
			t.Errorf("duration %q is no error", bad)
		}
	}
	if m, err := parseLabels([]string{"a=1", "b=", "a=1", "c=x=y"}); err != nil || !reflect.DeepEqual(m, map[string]string{"a": "1", "b": "", "c": "x=y"}) {
		t.Errorf("%v, %v", m, err)
	}
	for _, bad := range []string{"a", "=1", ""} {
		if _, err := parseLabels([]string{bad}); err == nil {
			t.Errorf("label %q is no error", bad)
		}
	}
	if _, err := parseLabels([]string{"a=1", "a=2"}); err == nil {
		t.Error("one label with two values is no error")
	}
	env, err := parseEnv([]string{"A=1", "B", "C", "D="}, func(k string) (string, bool) { return "here", k == "B" })
	got := ""
	for _, e := range env {
		got += e.GetName() + "=" + e.GetValue() + " "
	}
	if err != nil || got != "A=1 B=here D= " {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTheNearestFlag(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"nmae", "name", 1}, {"memroy", "memory", 1}, {"cpu", "cpus", 1}, {"abc", "xyz", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%s %s: %d", c.a, c.b, got)
		}
	}
}

func TestSSHGetsWordsThatNothingReadsTwice(t *testing.T) {
	s := &bangerv1.SSHResponse{Vm: "0123", Name: "web", KeyPath: `/home/a b/%k"`, KnownHosts: "/k", HostKeyAlias: "banger-0123", Options: []string{"ForwardAgent=no"}}
	got := sshArgv(s, "/opt/my banger/100%", false, []string{"printf", "%s|", "a b", "", "it's"})
	text := strings.Join(got, "\n")
	for _, want := range []string{
		"ProxyCommand='/opt/my banger/100%%' ssh-proxy 0123", `IdentityFile="/home/a b/%%k\""`, "StrictHostKeyChecking=yes", "HostKeyAlias=banger-0123", "ForwardAgent=no",
		"\n-l\nroot\n--\nweb\nprintf '%s|' 'a b' '' 'it'\\''s'",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if got := sshArgv(s, "b", false, []string{"ls | wc -l"}); got[len(got)-1] != "ls | wc -l" {
		t.Errorf("a line for the remote shell became %q", got[len(got)-1])
	}
}

func TestArgumentsOfUsageLines(t *testing.T) {
	got := argsOf("run [PATH] [-- CMD…]")
	want := []argSchema{{"PATH", true, false}, {"CMD", true, true}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if got := argsOf("cp SRC… DST"); !reflect.DeepEqual(got, []argSchema{{"SRC", false, true}, {"DST", false, false}}) {
		t.Errorf("%+v", got)
	}
}

func FuzzOutputAsJSONLines(f *testing.F) {
	f.Add([]byte("héllo\xff\xc3"), 1)
	f.Add([]byte("日本語"), 2)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 || n > 64 {
			return
		}
		var out bytes.Buffer
		a := &app{ui: ui.New(ui.Options{Out: &out, Err: &out, Getenv: func(string) string { return "" }})}
		j := &jsonChunks{a: a, kind: "stdout"}
		for i := 0; i < len(b); i += n {
			if _, err := j.Write(b[i:min(len(b), i+n)]); err != nil {
				t.Fatal(err)
			}
		}
		j.flush()
		var got []byte
		for dec := json.NewDecoder(&out); dec.More(); {
			var l runLine
			if err := dec.Decode(&l); err != nil {
				t.Fatal(err)
			}
			if l.Data != nil {
				got = append(got, *l.Data...)
			} else {
				raw, err := base64.StdEncoding.DecodeString(*l.Base64)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, raw...)
			}
		}
		if !bytes.Equal(got, b) {
			t.Errorf("%q became %q", b, got)
		}
	})
}
