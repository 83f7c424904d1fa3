package tarcheck_test

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/image/tarcheck"
)

func TestEdit(t *testing.T) {
	r := tarcheck.New(bytes.NewReader(stream(t,
		entry(tar.TypeDir, "etc"), entry(tar.TypeReg, "etc/machine-id"), entry(tar.TypeReg, "etc/keep"),
		entry(tar.TypeDir, "dev"), entry(tar.TypeReg, "dev/x"))), tarcheck.Limits{})
	var tapped bytes.Buffer
	r.Apply(tarcheck.Edit{
		Tap:  map[string]io.Writer{"etc/keep": &tapped},
		More: func() ([]tarcheck.File, error) { return []tarcheck.File{{Name: "late", Data: []byte("l")}}, nil },
		Drop: func(name string, dir bool) bool { return strings.HasPrefix(name, "dev/") && !dir },
		Add: []tarcheck.File{
			{Name: "etc", Dir: true, Mode: 0o700},
			{Name: "etc/machine-id", Mode: 0o444, Data: []byte("new")},
			{Name: "opt/tool/bin", Mode: 0o755, Size: 3, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("bin")), nil }},
			{Name: "etc/masked", Link: "/dev/null"},
			{Name: "var/empty", Dir: true, Mode: 0o711},
			{Name: "etc/blank", Mode: 0o644},
		},
	})
	got, err := read(r)
	if err != nil {
		t.Fatal(err)
	}
	if tapped.String() != "data" {
		t.Errorf("tapped %q", tapped.String())
	}
	want := "5 etc|0 etc/keep data|5 dev|0 etc/machine-id new|5 opt|5 opt/tool|0 opt/tool/bin bin|2 etc/masked /dev/null|5 var|5 var/empty|0 etc/blank|0 late l"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func TestAddedFilesDoNotFollowTheImagesLinks(t *testing.T) {
	for _, link := range []string{"etc", "etc/systemd"} {
		hs := []tar.Header{entry(tar.TypeSymlink, link, "/host")}
		r := tarcheck.New(bytes.NewReader(stream(t, hs...)), tarcheck.Limits{})
		r.Apply(tarcheck.Edit{Add: []tarcheck.File{{Name: "etc/systemd/system/x.service", Data: []byte("x"), Mode: 0o644}}})
		if _, err := read(r); errs.CodeOf(err) != "image_entry" {
			t.Errorf("%s a link: %v", link, err)
		}
	}
}

func TestAddedFileShorterThanItsSize(t *testing.T) {
	r := tarcheck.New(bytes.NewReader(stream(t)), tarcheck.Limits{})
	r.Apply(tarcheck.Edit{Add: []tarcheck.File{{Name: "x", Size: 10, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("short")), nil
	}}}})
	if _, err := read(r); err == nil {
		t.Error("a short file passed")
	}
}
