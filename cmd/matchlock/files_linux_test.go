package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// amounts say how much programs do in a folder of the host.
type amounts struct {
	commits, wheels, transactions, files int

	packages  string // that npm installs
	installed int    // at least so many
	cold      bool   // go builds the standard library as well
}

// TestVMFiles has programs of a Debian guest work in a folder of the host, none of them
// changed or told. What they leave is what they would have left there themselves.
func TestVMFiles(t *testing.T) {
	m := install(t)
	m.patience = 10 * time.Minute
	workInFolders(t, m, amounts{commits: 6, wheels: 3, transactions: 100, files: 300, packages: "express", installed: 50})
}

// TestLongFiles is TestVMFiles with much more to do, once.
func TestLongFiles(t *testing.T) {
	long(t)
	m := install(t)
	m.patience = time.Hour
	workInFolders(t, m, amounts{commits: 200, wheels: 50, transactions: 1000, files: 20_000, packages: "jest", installed: 200, cold: true})
}

// workInFolders has root of a guest do it, and where there is time another user, who is
// the owner of the host's files then.
func workInFolders(t *testing.T, m *installed, n amounts) {
	m.mustRun(t, "image", "import", "debian-12", filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "images", "debian-12.tar"))
	users := []string{"root"}
	if n.cold {
		users = append(users, "1234:1234")
	}
	for _, user := range users {
		t.Run(user, func(t *testing.T) { workInFolder(t, m, n, user) })
	}
	m.leavesNothing(t)
}

func workInFolder(t *testing.T, m *installed, n amounts, user string) {
	dir := t.TempDir()
	goRoot := hostRun(t, ".", "go", "env", "GOROOT")
	node := filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "node")
	args := []string{"run", "-d", "--name", "box", "-m", "1g", "-u", user, "-v", dir + ":/src", "-v", node + "/node_modules:/node:ro", "-v", goRoot + ":" + goRoot + ":ro"}
	for _, v := range []string{
		"HOME=/tmp/home", "PATH=/node/.bin:" + goRoot + "/bin:/usr/local/bin:/usr/bin:/bin",
		"GIT_AUTHOR_NAME=guest", "GIT_AUTHOR_EMAIL=guest@box.test", "GIT_COMMITTER_NAME=guest", "GIT_COMMITTER_EMAIL=guest@box.test",
	} {
		args = append(args, "-e", v)
	}
	jobs := []job{gitJob(n), sqliteJob(n), tarJob(t, dir, n, user == "root")}
	jobs = append(jobs, npmJob(t, dir, node, n), pipJob(t, dir, n), goJob(t, dir, goRoot, n))
	m.mustRun(t, append(args, "debian-12", "sleep", "infinity")...)
	m.mustRun(t, "exec", "box", "mkdir", "-p", "/tmp/home")
	for _, job := range jobs {
		t.Run(job.name, func(t *testing.T) {
			r := m.call(t, "box", "set -eu\ncd /src\n"+job.script)
			if r.status != 0 || !regexp.MustCompile("^(?:"+job.want+")$").MatchString(r.stdout) || strings.TrimSpace(r.stderr) != "" {
				t.Errorf("status %d, said\n%s%s\nwant\n%s", r.status, r.stdout, r.stderr, job.want)
			}
			t.Log(r.took)
			if job.check != nil {
				job.check(t, dir, r.stdout)
			}
		})
	}
	m.mustRun(t, "rm", "-f", "box")
	belongsToUs(t, dir)
	m.leavesNothing(t)
}

// job is a script for sh, what it is to say, and a look at what it has left.
type job struct {
	name, script, want string
	check              func(t *testing.T, dir, said string)
}

// belongsToUs checks that all there is in a folder is the user's, and nothing of it can
// give anybody rights.
func belongsToUs(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		info, err := e.Info()
		if err != nil {
			return err
		}
		if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != os.Geteuid() {
			t.Errorf("%s belongs to %d", path, owner)
		}
		if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if info.Mode()&^fs.ModePerm&^(fs.ModeDir|fs.ModeSymlink) != 0 {
			t.Errorf("%s is %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d files", n)
}

// hostRun runs a program of the host in a folder, and returns what it says.
func hostRun(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v\n%s%s", cmd.Args, err, out, &stderr)
	}
	return strings.TrimSpace(string(out))
}

func gitJob(n amounts) job {
	return job{"git", fmt.Sprintf(`
		git init -q -b main repo
		cd repo
		git config core.logAllRefUpdates always
		for i in $(seq %[1]d); do
			mkdir -p d$((i %% 7))
			echo $i >d$((i %% 7))/f$i
			echo $i >>all
			git add .
			git commit -q -m "commit $i"
		done
		git checkout -q -b side HEAD~5
		for i in 1 2 3; do
			echo $i >side$i
			git add .
			git commit -q -m "side $i"
		done
		git rebase -q main 2>/dev/null
		git mv side1 d1/moved
		git commit -q -a -m moved
		echo stashed >>all
		git stash -q
		git worktree add -q -b other ../tree main 2>/dev/null
		git gc -q
		git stash pop -q
		git commit -q -a -m "from the stash"
		git checkout -q main
		git merge -q --no-edit side
		git fsck --full --strict --no-dangling --no-progress
		git reflog | wc -l
		cd ..
		git clone -q repo clone
		cd clone
		git log --oneline | wc -l
		git fsck --full --strict --no-dangling --no-progress
		git status --short
		`, n.commits), fmt.Sprintf(`[0-9]+\n%d\n`, n.commits+5),
		func(t *testing.T, dir, _ string) {
			for _, repo := range []string{"repo", "clone"} {
				repo := filepath.Join(dir, repo)
				for _, args := range [][]string{{"fsck", "--full", "--strict", "--no-dangling", "--no-progress"}, {"status", "--short"}} {
					if said := hostRun(t, repo, "git", append([]string{"-c", "safe.directory=*"}, args...)...); said != "" {
						t.Errorf("git %q: %s", args, said)
					}
				}
				if moved, err := os.ReadFile(filepath.Join(repo, "d1/moved")); err != nil || string(moved) != "1\n" {
					t.Errorf("moved is %q, %v", moved, err)
				}
			}
		}}
}

// sqliteJob has two processes write to one database, with a write-ahead log that they
// share by mmap(2) and locks.
func sqliteJob(n amounts) job {
	return job{"sqlite3", python(fmt.Sprintf(`
import multiprocessing, sqlite3

def connect():
    return sqlite3.connect("data.db", timeout=60, isolation_level=None)

def write(who):
    db = connect()
    for i in range(%d):
        db.execute("begin immediate")
        db.execute("insert into entry values (?, ?, ?)", (who, i, "x" * (i %% 100)))
        db.execute("update total set n = n + 1")
        db.execute("commit")
    db.close()

db = connect()
print(db.execute("pragma journal_mode = wal").fetchone()[0])
db.execute("create table entry (who, i, text)")
db.execute("create table total (n)")
db.execute("insert into total values (0)")
writers = [multiprocessing.Process(target=write, args=(who,)) for who in range(2)]
for w in writers: w.start()
for w in writers: w.join()
print(db.execute("select (select n from total), count(*) from entry").fetchone())
print(db.execute("pragma integrity_check").fetchone()[0])
db.close()`, n.transactions/2)) + "\nls data.db*\nsha256sum <data.db", fmt.Sprintf(`wal\n\(%[1]d, %[1]d\)\nok\ndata.db\n.*\n`, n.transactions/2*2),
		func(t *testing.T, dir, said string) {
			data, err := os.ReadFile(filepath.Join(dir, "data.db"))
			if err != nil || !strings.Contains(said, fmt.Sprintf("\n%x ", sha256.Sum256(data))) || !bytes.HasPrefix(data, []byte("SQLite format 3\x00")) {
				t.Errorf("the host has %d other bytes, %v", len(data), err)
			}
		}}
}

// npmJob installs from a cache that the host has made.
func npmJob(t *testing.T, dir, node string, n amounts) job {
	hostRun(t, dir, "cp", "-r", filepath.Join(node, "cache"), "cache")
	return job{"npm", `
		mkdir project
		cd project
		npm install --offline --cache /src/cache --no-audit --no-fund --no-update-notifier --loglevel error ` + n.packages + ` >log
		npm ls --all --parseable >list
		node -e 'require("` + n.packages + `"); console.log("loads")'
		wc -l <list
		`, `loads\n[0-9]+\n`,
		func(t *testing.T, dir, said string) {
			var packages int
			if fmt.Sscanf(said, "loads\n%d", &packages); packages < n.installed {
				t.Errorf("%d packages, want at least %d", packages, n.installed)
			}
			// The host's own installation of the same versions.
			again := t.TempDir()
			hostRun(t, dir, "cp", "project/package.json", "project/package-lock.json", again)
			npm := filepath.Join(node, "node_modules", ".bin", "npm")
			cmd := exec.CommandContext(t.Context(), npm, "ci", "--offline", "--cache", filepath.Join(dir, "cache"), "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel", "error")
			cmd.Dir = again
			cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(npm)+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			hostRun(t, dir, "diff", "-r", "-q", "--no-dereference", "--exclude=.package-lock.json", filepath.Join(again, "node_modules"), filepath.Join(dir, "project", "node_modules"))
		}}
}

// pipJob installs wheels of which each needs the next.
func pipJob(t *testing.T, dir string, n amounts) job {
	if err := os.Mkdir(filepath.Join(dir, "wheels"), 0o755); err != nil {
		t.Fatal(err)
	}
	const modules = 20
	for i := range n.wheels {
		var needs []string
		if i+1 < n.wheels {
			needs = []string{fmt.Sprintf("wheel%d", i+1)}
		}
		name := fmt.Sprintf("wheel%d", i)
		if err := os.WriteFile(filepath.Join(dir, "wheels", name+"-1.0-py3-none-any.whl"), wheelOf(t, name, modules, needs...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return job{"pip", fmt.Sprintf(`
		pip install -q --disable-pip-version-check --no-warn-script-location --root-user-action ignore --no-index --find-links wheels --target site wheel0
		PYTHONPATH=site python3 -c 'import wheel%[1]d, wheel0_modules.m7 as m; print(wheel%[1]d.hello, m.number)'
		find site -name '*.py' | wc -l
		find site -name '*.pyc' | wc -l
		`, n.wheels-1), fmt.Sprintf(`from a wheel 7\n%[1]d\n%[1]d\n`, n.wheels*(modules+1)),
		func(t *testing.T, dir, _ string) {
			for i := range n.wheels {
				for j := range modules {
					file := filepath.Join(dir, "site", fmt.Sprintf("wheel%d_modules/m%d.py", i, j))
					if content, err := os.ReadFile(file); err != nil || string(content) != fmt.Sprintf("number = %d\n", j) {
						t.Errorf("%s is %q, %v", file, content, err)
					}
				}
			}
		}}
}

// goJob builds a module of three packages with the host's go. Unless it is to be cold, it
// needs no more of the standard library than any program, which the host has built.
func goJob(t *testing.T, dir, goRoot string, n amounts) job {
	module := map[string]string{
		"go.mod":         "module box.test/hello\n\ngo 1.21\n",
		"main.go":        "package main\n\nimport \"box.test/hello/name\"\n\nfunc main() { println(\"hello\", name.Of()) }\n",
		"name/name.go":   "package name\n\nimport \"box.test/hello/name/last\"\n\nfunc Of() string { return \"first \" + last.Name }\n",
		"name/last/1.go": "package last\n\nconst Name = \"last\" + dot\n",
		"name/last/2.go": "package last\n\nconst dot = \".\"\n",
	}
	if n.cold {
		module["cold.go"] = "package main\n\nimport \"fmt\"\n\nfunc init() { fmt.Print() }\n"
	}
	for name, content := range module {
		path := filepath.Join(dir, "module", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"GOTOOLCHAIN=local", "GOFLAGS=", "GO111MODULE=on", "GOPROXY=off", "GOTELEMETRY=off", "CGO_ENABLED=0"}
	if !n.cold {
		cmd := exec.CommandContext(t.Context(), filepath.Join(goRoot, "bin", "go"), "build", "runtime")
		cmd.Env = append(append(os.Environ(), env...), "GOCACHE="+filepath.Join(dir, "build"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	const want = "hello first last."
	return job{"go", `
		export GOCACHE=/src/build ` + strings.Join(env, " ") + `
		cd module
		go build -trimpath -o ../hello .
		../hello 2>&1
		`, want + "\n",
		func(t *testing.T, dir, _ string) {
			if said, err := exec.CommandContext(t.Context(), filepath.Join(dir, "hello")).CombinedOutput(); err != nil || string(said) != want+"\n" {
				t.Errorf("on the host it says %q, %v", said, err)
			}
		}}
}

// tarJob unpacks an archive of so many files of all sorts, and packs what has become of
// it, which must be the same. asRoot: with the owners and set-id bits in it, which stay
// in the guest.
func tarJob(t *testing.T, dir string, n amounts, asRoot bool) job {
	made, want := archiveOf(t, n.files)
	if err := os.WriteFile(filepath.Join(dir, "in.tar"), made, 0o644); err != nil {
		t.Fatal(err)
	}
	owners := "1234:1234"
	if asRoot {
		owners = "77:88"
	}
	return job{"tar", `
		mkdir out
		tar -x -p -f in.tar -C out
		tar --diff -f in.tar -C out ` + map[bool]string{true: "", false: "| grep -v -e 'Uid differs' -e 'Gid differs' || true"}[asRoot] + `
		cd out
		stat -c '%a %u:%g' setid
		stat -c %h first second
		find . -type f | wc -l
		`, fmt.Sprintf("4755 %s\n2\n2\n%d\n", owners, n.files+4),
		func(t *testing.T, dir, _ string) {
			for _, h := range want {
				path := filepath.Join(dir, "out", h.Name)
				info, err := os.Lstat(path)
				if err != nil {
					t.Error(err)
					continue
				}
				switch h.Typeflag {
				case tar.TypeReg:
					content, err := os.ReadFile(path)
					if err != nil || string(content) != contentOf(h.Name, h.Size) {
						t.Errorf("%s has %d other bytes, %v", h.Name, len(content), err)
					}
					if !info.ModTime().Equal(h.ModTime) {
						t.Errorf("%s is of %v, want %v", h.Name, info.ModTime(), h.ModTime)
					}
					if mode := fs.FileMode(h.Mode)&fs.ModePerm | 0o600; info.Mode() != mode {
						t.Errorf("%s has mode %v, want %v", h.Name, info.Mode(), mode)
					}
				case tar.TypeSymlink:
					if target, err := os.Readlink(path); err != nil || target != h.Linkname {
						t.Errorf("%s leads to %q, %v", h.Name, target, err)
					}
				}
			}
		}}
}

// contentOf is what a file has that is so large.
func contentOf(name string, size int64) string {
	seed := sha256.Sum256([]byte(name))
	content := make([]byte, size)
	rand.NewChaCha8(seed).Read(content)
	return string(content)
}

// archiveOf is an archive with n regular files, and one of each other kind.
func archiveOf(t *testing.T, n int) (archive []byte, headers []tar.Header) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header) {
		h.Uid, h.Gid, h.ModTime = 77, 88, time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, contentOf(h.Name, h.Size)); err != nil {
				t.Fatal(err)
			}
		}
		headers = append(headers, h)
	}
	for i := range n {
		add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/e%d/%s%d", i%17, i%5, strings.Repeat("n", i%80), i), Size: int64(i * 37 % 9000), Mode: []int64{0o644, 0o755, 0o600, 0o444, 0o400}[i%5]})
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "big", Size: 3<<20 + 5, Mode: 0o640})
	add(tar.Header{Typeflag: tar.TypeReg, Name: "setid", Size: 10, Mode: 0o4755})
	add(tar.Header{Typeflag: tar.TypeReg, Name: "first", Size: 10, Mode: 0o644})
	add(tar.Header{Typeflag: tar.TypeLink, Name: "second", Linkname: "first", Mode: 0o644})
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "../../../etc/passwd", Mode: 0o777})
	add(tar.Header{Typeflag: tar.TypeDir, Name: "empty/", Mode: 0o711})
	add(tar.Header{Typeflag: tar.TypeDir, Name: "ünï\tçode/", Mode: 0o755})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), headers
}
