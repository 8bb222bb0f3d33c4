// The search of a page that was opened as a file: browsers start no worker there. Its code runs in a frame instead.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      document.body.appendChild(frame)
      this.inside = frame.contentWindow
      this.waiting = []                        // messages before the code is there
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', { data }))
      const script = frame.contentDocument.createElement('script')
      script.src = url
      script.onload = () => {
        const before = this.waiting
        this.waiting = null
        before.forEach(data => this.postMessage(data))
      }
      frame.contentDocument.body.appendChild(script)
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.inside.dispatchEvent(new MessageEvent('message', { data }))
    }
  }
}
